package realkafka

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"getimmutable.dev/immutable/internal/kafka"
)

// What a client of a secured cluster says who it is.
const (
	saslUser     = "immutable"
	saslPassword = "correct horse"
)

// security is the certificates and passwords of a secured cluster, in files.
type security struct{ dir string }

func (s *security) file(name string) string { return filepath.Join(s.dir, name) }

// newSecurity makes an authority, with certificates for the brokers and for a client.
func newSecurity(dir string) (*security, error) {
	s := &security{dir: dir}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := func(name string) *x509.Certificate {
		now := time.Now()
		return &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		}
	}
	ca := template("test authority")
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"broker", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		leaf := template(name)
		leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
		if err != nil {
			return nil, err
		}
		keyDER, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, err
		}
		keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
		certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		err = errors.Join(
			os.WriteFile(s.file(name+".key"), keyPEM, 0o600),
			os.WriteFile(s.file(name+".crt"), certPEM, 0o600),
			os.WriteFile(s.file(name+".pem"), slices.Concat(keyPEM, certPEM), 0o600), // as Java wants it
		)
		if err != nil {
			return nil, err
		}
	}
	return s, errors.Join(
		os.WriteFile(s.file("ca.crt"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), 0o600),
		os.WriteFile(s.file("password"), []byte(saslPassword+"\n"), 0o600),
	)
}

// properties are those of a broker's two secure listeners.
func (s *security) properties() map[string]string {
	return map[string]string{
		"ssl.keystore.type":       "PEM",
		"ssl.keystore.location":   s.file("broker.pem"),
		"ssl.truststore.type":     "PEM",
		"ssl.truststore.location": s.file("ca.crt"),

		"listener.name.mtls.ssl.client.auth":         "required",
		"listener.name.sasl.sasl.enabled.mechanisms": kafka.MechanismPlain + "," + kafka.MechanismScramSHA512,
		"listener.name.sasl.plain.sasl.jaas.config": fmt.Sprintf(
			"org.apache.kafka.common.security.plain.PlainLoginModule required user_%s=%q;", saslUser, saslPassword),
		"listener.name.sasl.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
	}
}

// scramCredential is what the storage tool makes a user of.
func (s *security) scramCredential() string {
	return fmt.Sprintf("%s=[name=%s,password=%s]", kafka.MechanismScramSHA512, saslUser, saslPassword)
}

// SASL reaches a secured cluster with TLS and a mechanism, as its one user.
func (c *Cluster) SASL(mechanism string) kafka.Config {
	cfg := c.Config()
	cfg.Brokers = c.addresses(listenerSASL)
	cfg.TLS = kafka.TLSConfig{Enabled: true, CAFile: c.security.file("ca.crt")}
	cfg.SASL = kafka.SASLConfig{Mechanism: mechanism, User: saslUser, PasswordFile: c.security.file("password")}
	return cfg
}

// MutualTLS reaches a secured cluster with a client's certificate.
func (c *Cluster) MutualTLS() kafka.Config {
	cfg := c.Config()
	cfg.Brokers = c.addresses(listenerMutualTLS)
	cfg.TLS = kafka.TLSConfig{
		Enabled: true, CAFile: c.security.file("ca.crt"),
		CertFile: c.security.file("client.crt"), KeyFile: c.security.file("client.key"),
	}
	return cfg
}
