package realkafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Hook decides what becomes of a request before the broker sees it. It runs on the connection's goroutine: while it
// waits, so does everything that the client sends on that connection, and nothing else. It must return before the broker
// is killed, as at the test's end.
type Hook func(*Request) Verdict

// Request is on its way to a broker of a proxied cluster.
type Request struct {
	// Broker is the id of the one that it is for.
	Broker int
	// BetweenBrokers says that another broker sent it, or this one itself.
	BetweenBrokers bool
	// Key and Version say what it is, as in kmsg.
	Key, Version int16

	body []byte
}

// Verdict is what becomes of a request. The zero value lets it pass.
type Verdict struct {
	// Answer, if not nil, changes the broker's answer.
	Answer func(kmsg.Response)
	// Drop ends the connection: the broker never sees the request.
	Drop bool
	// LoseAnswer ends the connection when the broker has answered: it has done what was asked of it.
	LoseAnswer bool
}

// Intercept has every request of clients and between brokers decided by hook from now on; nil lets them pass.
func (c *Cluster) Intercept(hook Hook) {
	if hook == nil {
		c.hook.Store(nil)
		return
	}
	c.hook.Store(&hook)
}

// Decode returns the request. Requests of versions that franz-go does not know, which brokers may send, are an error.
func (r *Request) Decode() (kmsg.Request, error) {
	req := kmsg.RequestForKey(r.Key)
	if req == nil || r.Version > req.MaxVersion() {
		return nil, fmt.Errorf("request %d of version %d is not known", r.Key, r.Version)
	}
	req.SetVersion(r.Version)
	// The header: key, version, correlation id, client id, and tags where the version has them.
	const fixed = 2 + 2 + 4
	if len(r.body) < fixed+2 {
		return nil, io.ErrUnexpectedEOF
	}
	rest := r.body[fixed:]
	client := max(0, int(int16(binary.BigEndian.Uint16(rest))))
	if len(rest) < 2+client {
		return nil, io.ErrUnexpectedEOF
	}
	rest = rest[2+client:]
	if req.IsFlexible() {
		var err error
		if rest, err = skipTags(rest); err != nil {
			return nil, err
		}
	}
	return req, req.ReadFrom(rest)
}

// skipTags returns what follows the tags at the start of b.
func skipTags(b []byte) ([]byte, error) {
	next := func() (n uint64) {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			b = nil
			return 0
		}
		b = b[size:]
		return n
	}
	for range next() {
		next() // the tag
		size := next()
		if size > uint64(len(b)) {
			return nil, io.ErrUnexpectedEOF
		}
		b = b[size:]
	}
	return b, nil
}

// change applies a verdict to an answer's frame.
func (v *Verdict) change(key, version int16, frame []byte) ([]byte, error) {
	if v.Answer == nil {
		return frame, nil
	}
	req := kmsg.RequestForKey(key)
	req.SetVersion(version)
	resp := req.ResponseKind()
	const correlation = 4
	head, body := frame[:correlation], frame[correlation:]
	if resp.IsFlexible() {
		var err error
		if body, err = skipTags(body); err != nil {
			return nil, err
		}
		head = append(slices.Clip(head), 0)
	}
	if err := resp.ReadFrom(body); err != nil {
		return nil, err
	}
	v.Answer(resp)
	return resp.AppendTo(slices.Clip(head)), nil
}

// proxy passes connections to a listener of a broker, frame by frame, while the broker runs: connections to one that does
// not are refused.
type proxy struct {
	cluster  *Cluster
	broker   *broker
	listener string // of the broker
	port     *port
	done     sync.WaitGroup

	mu     sync.Mutex
	accept net.Listener // nil while it is closed
	conns  map[net.Conn]struct{}
}

// proxy puts a proxy before a listener of a broker that has not been started yet.
func (c *Cluster) proxy(b *broker, listener string) error {
	p, err := reserve()
	if err != nil {
		return err
	}
	b.proxies[listener] = &proxy{
		cluster: c, broker: b, listener: listener, port: p, conns: make(map[net.Conn]struct{}),
	}
	return nil
}

// open lets connections in.
func (p *proxy) open() error {
	accept, err := net.Listen("tcp", p.port.addr) //nolint:noctx // returns at once
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.accept = accept
	p.done.Go(func() {
		for {
			client, err := accept.Accept()
			if err != nil {
				return
			}
			p.done.Go(func() { p.serve(client) })
		}
	})
	return nil
}

// close ends all connections and lets no more in until open.
func (p *proxy) close() {
	p.mu.Lock()
	if p.accept != nil {
		_ = p.accept.Close()
		p.accept = nil
	}
	for conn := range p.conns {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.done.Wait()
}

// track closes conn when the proxy closes, if not before.
func (p *proxy) track(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.accept == nil {
		_ = conn.Close()
		return
	}
	p.conns[conn] = struct{}{}
}

func (p *proxy) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
	_ = conn.Close()
}

// pending is a request whose answer is awaited; a broker answers in the order of a connection's requests.
type pending struct {
	verdict      Verdict
	key, version int16
}

const maxPending = 1000 // more than a client has on a connection

func (p *proxy) serve(client net.Conn) {
	p.track(client)
	defer p.drop(client)
	server, err := net.Dial("tcp", p.broker.ports[p.listener].addr) //nolint:noctx // on this machine
	if err != nil {
		return
	}
	p.track(server)
	defer p.drop(server)

	asked := make(chan pending, maxPending)
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		defer p.drop(client) // and so end the loop below
		_ = p.answer(client, server, asked)
	}()
	_ = p.ask(client, server, asked)
	p.drop(server) // and so end the answers
	<-answers
}

// ask passes requests on until one of the connections ends.
func (p *proxy) ask(client io.Reader, server io.Writer, asked chan<- pending) error {
	defer close(asked)
	for {
		frame, err := readFrame(client)
		if err != nil {
			return err
		}
		r := &Request{
			Broker: p.broker.id, BetweenBrokers: p.listener == listenerBrokers, body: frame,
			Key: int16(binary.BigEndian.Uint16(frame)), Version: int16(binary.BigEndian.Uint16(frame[2:])),
		}
		var v Verdict
		if hook := p.cluster.hook.Load(); hook != nil {
			v = (*hook)(r)
		}
		if v.Drop {
			return errors.New("dropped")
		}
		asked <- pending{key: r.Key, version: r.Version, verdict: v}
		if err := writeFrame(server, frame); err != nil {
			return err
		}
	}
}

// answer passes answers back until one of the connections ends.
func (*proxy) answer(client io.Writer, server io.Reader, asked <-chan pending) error {
	for {
		frame, err := readFrame(server)
		if err != nil {
			return err
		}
		of, ok := <-asked
		if !ok || of.verdict.LoseAnswer {
			return errors.New("not asked, or lost")
		}
		if frame, err = of.verdict.change(of.key, of.version, frame); err != nil {
			return err
		}
		if err := writeFrame(client, frame); err != nil {
			return err
		}
	}
}

const (
	minFrameBytes = 4
	maxFrameBytes = 128 << 20 // more than a broker accepts
)

func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n < minFrameBytes || n > maxFrameBytes {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	frame := make([]byte, n)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func writeFrame(w io.Writer, frame []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(frame)), uint32(len(frame))), frame...))
	return err
}
