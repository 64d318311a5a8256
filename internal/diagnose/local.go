package diagnose

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"time"
)

// A certificate that ends within certWarning is a warning, within certProblem a problem.
const (
	certWarning = 30 * 24 * time.Hour
	certProblem = 3 * 24 * time.Hour
)

// Clocks that differ by more are a warning, or a problem.
const (
	skewWarning = time.Second
	skewProblem = 30 * time.Second
)

// disk looks at the one that cfg.Dir is on.
func (c *Config) disk(context.Context) []Finding {
	var st syscall.Statfs_t
	if err := syscall.Statfs(c.Dir, &st); err != nil {
		return []Finding{{
			Level: Problem, Seen: fmt.Sprintf("%s: %v", c.Dir, err), Why: "everything that `up` keeps is there",
			Do: "mount it, or name the right folder with --data",
		}}
	}
	return c.room(c.Dir, st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize),
		"below --min-free-mib `up` accepts no new events",
		fmt.Sprintf("make room: du -xh %s | sort -h | tail", c.Dir))
}

// room judges the free space of a disk.
func (c *Config) room(name string, free, total uint64, why, do string) []Finding {
	f := Finding{
		Level: OK, Seen: fmt.Sprintf("%s: %d MiB of %d MiB free", name, free>>20, total>>20),
	}
	switch {
	case free < c.MinFreeBytes:
		f.Level = Problem
	case free/4 < c.MinFreeBytes:
		f.Level = Warning
	default:
		return []Finding{f}
	}
	f.Why, f.Do = why, do
	return []Finding{f}
}

// certFiles looks at the certificates of files.
func (c *Config) certFiles(context.Context) []Finding {
	var found []Finding
	for _, path := range c.CertFiles {
		text, err := os.ReadFile(path) //nolint:gosec // a file that the operator names
		if err != nil {
			found = append(found, Finding{
				Level: Problem, Seen: err.Error(), Why: "a service that is given this file does not start",
				Do: "name a file that this user can read",
			})
			continue
		}
		var chain []*x509.Certificate
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err == nil {
				chain = append(chain, cert)
			}
		}
		found = append(found, expiry(path, chain))
	}
	return found
}

// expiry judges the certificate that ends first.
func expiry(where string, chain []*x509.Certificate) Finding {
	if len(chain) == 0 {
		return Finding{
			Level: Problem, Seen: where + " has no certificate that can be read", Why: "no TLS connection can be made with it",
			Do: "openssl x509 -noout -text -in " + where,
		}
	}
	first := chain[0]
	for _, cert := range chain[1:] {
		if cert.NotAfter.Before(first.NotAfter) {
			first = cert
		}
	}
	left := time.Until(first.NotAfter)
	f := Finding{
		Level: OK, Seen: fmt.Sprintf("%s: valid until %s", where, first.NotAfter.UTC().Format(time.RFC3339)),
	}
	switch {
	case left < certProblem:
		f.Level = Problem
	case left < certWarning:
		f.Level = Warning
	default:
		return f
	}
	f.Why = fmt.Sprintf("the certificate of %q ends in %d hours; after that no connection is made", first.Subject.CommonName, int(left.Hours()))
	f.Do = "renew it where it comes from, and restart what serves it"
	return f
}

// shown looks at the certificates that servers show.
func shown(ctx context.Context, addrs []string, cfg *tls.Config) []Finding {
	if cfg == nil {
		return ok("TLS is off")
	}
	var found []Finding
	if len(cfg.Certificates) > 0 {
		own, err := x509.ParseCertificate(cfg.Certificates[0].Certificate[0])
		if err == nil {
			found = append(found, expiry("this client's", []*x509.Certificate{own}))
		}
	}
	for _, addr := range addrs {
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
		if err != nil {
			found = append(found, failed("TLS to "+addr, err)...)
			continue
		}
		found = append(found, expiry(addr, conn.(*tls.Conn).ConnectionState().PeerCertificates))
		_ = conn.Close() // nothing was asked on it
	}
	return found
}

// skew judges a clock that showed a time between asked and answered.
func skew(whose string, asked, shown, answered time.Time) []Finding {
	var off time.Duration
	switch {
	case shown.Before(asked):
		off = shown.Sub(asked)
	case shown.After(answered):
		off = shown.Sub(answered)
	}
	f := Finding{Level: OK, Seen: fmt.Sprintf("%s: %+.3f s from this machine's, give or take %.3f s", whose, off.Seconds(),
		answered.Sub(asked).Seconds())}
	switch d := time.Duration(math.Abs(float64(off))); {
	case d > skewProblem:
		f.Level = Problem
	case d > skewWarning:
		f.Level = Warning
	default:
		return []Finding{f}
	}
	f.Why = "the time at which events were recorded, and when they expire, is what clocks say"
	f.Do = "compare both machines with a time server: chronyc tracking"
	return []Finding{f}
}

// isTimeout also knows the connections that gave up by themselves.
func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}
