package chwriter

import (
	"bytes"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// proxy stands between a writer and ClickHouse, for what a network or a stopped process does to an insert.
type proxy struct {
	listener net.Listener
	server   string
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	// fault is what happens to the next insert's data; it happens once for each token that is put in.
	fault faultKind
	left  int

	// hit gets a token when a fault has happened; release, when closed, lets held data go.
	hit     chan struct{}
	release chan struct{}
	// closedByServer gets a token when the server closes a connection.
	closedByServer chan struct{}
}

type faultKind int

const (
	// hold keeps the data from the server until release, even when the writer has gone away.
	hold faultKind = iota
	// cut lets the data through, waits for the server's answer, and breaks the connection instead of passing it on.
	cut
	// lose breaks the connection before the data comes through.
	lose
)

// newProxy returns a proxy and the DSN that goes through it.
func newProxy(tb testing.TB, dsn string) (*proxy, string) {
	tb.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		tb.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{
		listener: l, server: u.Host, conns: make(map[net.Conn]struct{}),
		hit: make(chan struct{}, 100), release: make(chan struct{}), closedByServer: make(chan struct{}, 100),
	}
	p.wg.Go(p.accept)
	tb.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	u.Host = l.Addr().String()
	return p, u.String()
}

func (p *proxy) arm(fault faultKind, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.left = fault, n
}

// insertData says whether a chunk carries an insert's rows of leaves: they name the column, as the query does.
func insertData(chunk []byte) bool {
	return bytes.Contains(chunk, []byte("leaf_hash")) && !bytes.Contains(chunk, []byte("INSERT INTO"))
}

func (p *proxy) strike(chunk []byte) (faultKind, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 || !insertData(chunk) {
		return 0, false
	}
	p.left--
	return p.fault, true
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.server)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		p.mu.Unlock()
		answers := &answers{to: client, first: make(chan struct{})}
		p.wg.Go(func() { p.forward(client, server, answers) })
		p.wg.Go(func() {
			_, _ = io.Copy(answers, server)
			answers.end()
			p.closedByServer <- struct{}{}
			_ = client.Close()
		})
	}
}

func (p *proxy) forward(client, server net.Conn, answers *answers) {
	defer server.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		fault, ok := p.strike(buf[:n])
		switch {
		case !ok:
		case fault == hold:
			p.hold(client, server, buf[:n], answers)
			continue
		case fault == cut:
			answers.swallow()
			_, _ = server.Write(buf[:n])
			<-answers.first
			p.hit <- struct{}{}
			_ = client.Close()
			return
		case fault == lose:
			p.hit <- struct{}{}
			_ = client.Close()
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// hold keeps what the client sends until release. If the client has gone by then, it waits for the server to say how it
// went.
func (p *proxy) hold(client, server net.Conn, chunk []byte, answers *answers) {
	held := bytes.NewBuffer(bytes.Clone(chunk))
	gone := make(chan struct{})
	p.hit <- struct{}{}
	p.wg.Go(func() {
		defer close(gone)
		_, _ = io.Copy(held, client) // ends with the client, or with the deadline below
	})
	<-p.release
	left := false
	select {
	case <-gone:
		left = true
	default:
		_ = client.SetReadDeadline(time.Unix(1, 0))
		<-gone
		_ = client.SetReadDeadline(time.Time{})
	}
	if left {
		answers.swallow()
	}
	_, _ = server.Write(held.Bytes())
	if left {
		<-answers.first
	}
}

// answers passes the server's answers on, until it is told to swallow them.
type answers struct {
	to    net.Conn
	mu    sync.Mutex
	quiet bool
	once  sync.Once
	first chan struct{} // closed at the first answer that was swallowed, or when there will be none
}

func (a *answers) end() { a.once.Do(func() { close(a.first) }) }

func (a *answers) swallow() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.quiet = true
}

func (a *answers) Write(b []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.quiet {
		a.end()
		return len(b), nil
	}
	_, _ = a.to.Write(b) // a writer that has gone hears nothing more
	return len(b), nil
}
