package kafka_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
)

func TestConfigValidate(t *testing.T) {
	brokers := []string{"a:9092"}
	for name, tc := range map[string]struct {
		cfg  kafka.Config
		want string // "" = valid
	}{
		"minimal":       {kafka.Config{Brokers: brokers}, ""},
		"no broker":     {kafka.Config{}, "no broker"},
		"no port":       {kafka.Config{Brokers: []string{"a"}}, "missing port"},
		"TLS":           {kafka.Config{Brokers: brokers, TLS: kafka.TLSConfig{Enabled: true, CAFile: "x"}}, ""},
		"TLS off":       {kafka.Config{Brokers: brokers, TLS: kafka.TLSConfig{CAFile: "x"}}, "TLS is off"},
		"half a pair":   {kafka.Config{Brokers: brokers, TLS: kafka.TLSConfig{Enabled: true, KeyFile: "x"}}, "both or neither"},
		"PLAIN":         {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"PLAIN", "u", "f"}}, ""},
		"SCRAM":         {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"SCRAM-SHA-512", "u", "f"}}, ""},
		"other SASL":    {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"GSSAPI", "u", "f"}}, "neither PLAIN nor"},
		"no user":       {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"PLAIN", "", "f"}}, "needs a user"},
		"no password":   {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"PLAIN", "u", ""}}, "password file"},
		"user, no SASL": {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"", "u", ""}}, "no mechanism"},
	} {
		err := tc.cfg.Validate()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNames(t *testing.T) {
	cfg := kafka.Config{TopicPrefix: "eu."}
	if got := cfg.Topic("events") + " " + cfg.Group("seal"); got != "eu.events eu.seal" {
		t.Error(got)
	}
}

func TestOptionsReadFilesEarly(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	brokers, missing := []string{"a:9092"}, filepath.Join(dir, "missing")
	for name, tc := range map[string]struct {
		cfg  kafka.Config
		want string
	}{
		"invalid":        {kafka.Config{}, "no broker"},
		"no CA file":     {kafka.Config{Brokers: brokers, TLS: kafka.TLSConfig{Enabled: true, CAFile: missing}}, "authorities"},
		"empty CA file":  {kafka.Config{Brokers: brokers, TLS: kafka.TLSConfig{Enabled: true, CAFile: write("ca", "x")}}, "no PEM"},
		"no certificate": {kafka.Config{Brokers: brokers, TLS: kafka.TLSConfig{Enabled: true, CertFile: missing, KeyFile: missing}}, "certificate"},
		"no password":    {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"PLAIN", "u", missing}}, "password"},
		"empty password": {kafka.Config{Brokers: brokers, SASL: kafka.SASLConfig{"PLAIN", "u", write("pw", "\n")}}, "empty"},
	} {
		if _, err := tc.cfg.Options(slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReachesASecuredCluster connects with TLS and each mechanism, and is refused without.
func TestReachesASecuredCluster(t *testing.T) {
	cert, caFile := selfSigned(t)
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fake, err := kfake.NewCluster(
		kfake.NumBrokers(1), kfake.DataDir(t.TempDir()), kfake.EnableSASL(),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}),
		kfake.Superuser("PLAIN", "p", "hunter2"), kfake.Superuser("SCRAM-SHA-512", "s", "hunter2"),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	secured := kafka.TLSConfig{Enabled: true, CAFile: caFile}
	for name, tc := range map[string]struct {
		tls  kafka.TLSConfig
		sasl kafka.SASLConfig
		ok   bool
	}{
		"PLAIN":           {secured, kafka.SASLConfig{"PLAIN", "p", password}, true},
		"SCRAM":           {secured, kafka.SASLConfig{"SCRAM-SHA-512", "s", password}, true},
		"wrong user":      {secured, kafka.SASLConfig{"SCRAM-SHA-512", "x", password}, false},
		"no SASL":         {secured, kafka.SASLConfig{}, false},
		"untrusted":       {kafka.TLSConfig{Enabled: true}, kafka.SASLConfig{"PLAIN", "p", password}, false},
		"TLS not enabled": {kafka.TLSConfig{}, kafka.SASLConfig{"PLAIN", "p", password}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := kafka.Config{Brokers: fake.ListenAddrs(), TLS: tc.tls, SASL: tc.sasl}
			opts, err := cfg.Options(slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			cl, err := kgo.NewClient(append(opts, kgo.RequestRetries(0), kgo.RetryTimeout(5*time.Second))...)
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if err := cl.Ping(t.Context()); (err == nil) != tc.ok {
				t.Errorf("ping: %v, want it to work: %v", err, tc.ok)
			}
		})
	}
}

func TestClientWarningsReachTheLog(t *testing.T) {
	cluster := kafkatest.StartEmpty(t)
	var log bytes.Buffer
	opts, err := cluster.Config.Options(slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	cl, err := kgo.NewClient(append(opts, kgo.RequestRetries(0))...)
	if err != nil {
		t.Fatal(err)
	}
	cluster.Fake.Close()
	if err := cl.Ping(t.Context()); err == nil {
		t.Fatal("a closed cluster answered")
	}
	cl.Close()
	if !strings.Contains(log.String(), `level=WARN msg="kafka client" detail=`) {
		t.Errorf("log: %s", log.String())
	}
}

func selfSigned(t *testing.T) (cert tls.Certificate, caFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, caFile
}
