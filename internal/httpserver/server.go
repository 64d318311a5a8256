package httpserver

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Limits that hold where Config leaves a field zero.
const (
	DefaultReadHeaderTimeout = 5 * time.Second
	DefaultReadTimeout       = 30 * time.Second
	DefaultWriteTimeout      = 30 * time.Second
	DefaultIdleTimeout       = 2 * time.Minute
	DefaultMaxHeaderBytes    = 32 << 10
)

// drainTimeout is how long requests in hand may take after Run's context ends.
const drainTimeout = 10 * time.Second

// Config is where and within which limits a server serves.
type Config struct {
	// Addr is host:port; port 0 lets the kernel choose. No default.
	Addr string
	// TLSCertFile and TLSKeyFile are PEM files. Both or neither; neither means plain HTTP.
	TLSCertFile, TLSKeyFile string
	// ReadHeaderTimeout is how long a client may take over a request's head. Default 5 s.
	ReadHeaderTimeout time.Duration
	// ReadTimeout is how long a client may take over a whole request. Default 30 s.
	ReadTimeout time.Duration
	// WriteTimeout is how long an answer may take, from the end of the request's head. Default 30 s. A handler that
	// streams moves its own deadline with http.ResponseController.
	WriteTimeout time.Duration
	// IdleTimeout is how long a kept-alive connection may be silent. Default 2 minutes.
	IdleTimeout time.Duration
	// MaxHeaderBytes of a request's head, request line included. Default 32 KiB; net/http adds 4 KiB of slack.
	MaxHeaderBytes int
}

// Validate says what is wrong with c.
func (c *Config) Validate() error {
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		return fmt.Errorf("address %q: %w", c.Addr, err)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		return errors.New("a TLS certificate and its key go together: set both or neither")
	}
	if min(c.ReadHeaderTimeout, c.ReadTimeout, c.WriteTimeout, c.IdleTimeout) < 0 || c.MaxHeaderBytes < 0 {
		return errors.New("limits cannot be negative")
	}
	return nil
}

// Server serves one handler on one address.
type Server struct {
	logger   *slog.Logger
	listener net.Listener
	http     *http.Server
	cfg      Config
}

// New returns a server that does not listen yet.
func New(cfg Config, h http.Handler, logger *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("http server: %w", err)
	}
	return &Server{cfg: cfg, logger: logger, http: &http.Server{
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is answered in JSON too
		ReadHeaderTimeout:            cmp.Or(cfg.ReadHeaderTimeout, DefaultReadHeaderTimeout),
		ReadTimeout:                  cmp.Or(cfg.ReadTimeout, DefaultReadTimeout),
		WriteTimeout:                 cmp.Or(cfg.WriteTimeout, DefaultWriteTimeout),
		IdleTimeout:                  cmp.Or(cfg.IdleTimeout, DefaultIdleTimeout),
		MaxHeaderBytes:               cmp.Or(cfg.MaxHeaderBytes, DefaultMaxHeaderBytes),
		// What net/http says about single connections (bad TLS handshakes, scanners) is no operator's business.
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}}, nil
}

// Listen binds the address, so that Addr is known and connections queue before Run. Run listens if nobody did.
func (s *Server) Listen() error {
	l, err := net.Listen("tcp", s.cfg.Addr) //nolint:noctx // binding does not block
	if err != nil {
		return fmt.Errorf("http server: %w", err)
	}
	if s.cfg.TLSCertFile != "" {
		cert, err := tls.LoadX509KeyPair(s.cfg.TLSCertFile, s.cfg.TLSKeyFile)
		if err != nil {
			return errors.Join(fmt.Errorf("http server: loading the TLS certificate: %w", err), l.Close())
		}
		s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	s.listener = l
	return nil
}

// Addr returns host:port as bound. It is valid after Listen.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close frees the address of a server that listens and will not run.
func (s *Server) Close() error {
	if s.listener == nil {
		return nil
	}
	return s.listener.Close()
}

// Run serves until ctx ends, then stops accepting, lets the requests in hand finish for at most 10 s, cuts off the rest
// and returns nil. An error means that serving failed.
func (s *Server) Run(ctx context.Context) error {
	if s.listener == nil {
		if err := s.Listen(); err != nil {
			return err
		}
	}
	failed := make(chan error, 1)
	go func() { // ends with Shutdown or Close; received from below
		if s.http.TLSConfig != nil {
			failed <- s.http.ServeTLS(s.listener, "", "")
			return
		}
		failed <- s.http.Serve(s.listener)
	}()
	select {
	case err := <-failed:
		return fmt.Errorf("http server: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := s.http.Shutdown(drain); err != nil {
		s.logger.WarnContext(ctx, "requests were cut off at the end of the drain", slog.Any("error", err))
		_ = s.http.Close() // only closes connections that were given their time
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http server: %w", err)
	}
	return nil
}
