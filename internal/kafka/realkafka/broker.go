package realkafka

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Listeners of a broker.
const (
	listenerClients    = "CLIENTS"
	listenerBrokers    = "BROKERS"
	listenerController = "CONTROLLER"
	listenerSASL       = "SASL"
	listenerMutualTLS  = "MTLS"
)

// clusterID is always the same: a random one may begin with a "-", which the storage tool takes for an option.
const clusterID = "MkU3OEVBNTcwNTJENDM2Qk"

// broker is a process, its ports and its data.
type broker struct {
	id      int
	jars    string
	dir     string
	ports   map[string]*port  // by listener
	proxies map[string]*proxy // by listener, where there is one
	log     *brokerLog

	// Of the process that was started last.
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended; nil before the first start
}

func newBroker(id int, jars, dir string, secured bool) (*broker, error) {
	b := &broker{
		id: id, jars: jars, dir: dir, ports: make(map[string]*port), proxies: make(map[string]*proxy), log: &brokerLog{},
	}
	listeners := []string{listenerClients, listenerBrokers, listenerController}
	if secured {
		listeners = append(listeners, listenerSASL, listenerMutualTLS)
	}
	for _, l := range listeners {
		p, err := reserve()
		if err != nil {
			b.close()
			return nil, err
		}
		b.ports[l] = p
	}
	return b, nil
}

// close gives up what a broker that does not run holds.
func (b *broker) close() {
	for _, p := range b.proxies {
		p.close()
		p.port.release()
	}
	for _, p := range b.ports {
		p.release()
	}
}

// advertised is where others find a listener.
func (b *broker) advertised(listener string) string {
	if p := b.proxies[listener]; p != nil {
		return p.port.addr
	}
	return b.ports[listener].addr
}

// properties returns the server.properties of a broker.
func (c *Cluster) properties(b *broker, cfg Config) map[string]string {
	var voters, listeners, advertised, protocols []string
	for _, v := range c.brokers {
		voters = append(voters, fmt.Sprintf("%d@%s", v.id, v.ports[listenerController].addr))
	}
	for _, l := range slices.Sorted(maps.Keys(b.ports)) {
		listeners = append(listeners, l+"://"+b.ports[l].addr)
		advertised = append(advertised, l+"://"+b.advertised(l))
		protocol := map[string]string{listenerSASL: "SASL_SSL", listenerMutualTLS: "SSL"}[l]
		protocols = append(protocols, l+":"+cmp.Or(protocol, "PLAINTEXT"))
	}
	replicas, inSync := strconv.Itoa(len(c.brokers)), strconv.Itoa(max(1, len(c.brokers)-1))
	all := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(b.id),
		"controller.quorum.voters":       strings.Join(voters, ","),
		"listeners":                      strings.Join(listeners, ","),
		"advertised.listeners":           strings.Join(advertised, ","),
		"listener.security.protocol.map": strings.Join(protocols, ","),
		"controller.listener.names":      listenerController,
		"inter.broker.listener.name":     listenerBrokers,
		"log.dirs":                       filepath.Join(b.dir, "data"),
		"auto.create.topics.enable":      "false",

		// Internal topics of 50 partitions take long to create.
		"offsets.topic.num.partitions":                     "4",
		"offsets.topic.replication.factor":                 replicas,
		"transaction.state.log.num.partitions":             "4",
		"transaction.state.log.replication.factor":         replicas,
		"transaction.state.log.min.isr":                    inSync,
		"share.coordinator.state.topic.num.partitions":     "4",
		"share.coordinator.state.topic.replication.factor": replicas,
		"share.coordinator.state.topic.min.isr":            inSync,
		"default.replication.factor":                       replicas,
		"min.insync.replicas":                              inSync,

		// Little memory, few threads.
		"num.network.threads":               "2",
		"num.io.threads":                    "4",
		"num.recovery.threads.per.data.dir": "1",
		"log.cleaner.dedupe.buffer.size":    strconv.Itoa(2 << 20),

		// Little waiting.
		"broker.heartbeat.interval.ms":                                "500",
		"group.initial.rebalance.delay.ms":                            "0",
		"group.min.session.timeout.ms":                                "1000",
		"add.partitions.to.txn.retry.backoff.ms":                      "1",
		"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
	}
	if len(c.brokers) > 1 { // one alone has nobody to stand in for it, and must not lose its partitions on a busy machine
		all["broker.session.timeout.ms"] = "3000"
	}
	if c.security != nil {
		maps.Copy(all, c.security.properties())
	}
	maps.Copy(all, cfg.Properties)
	return all
}

func (b *broker) propertiesFile() string { return filepath.Join(b.dir, "server.properties") }

func (b *broker) loggingFile() string { return filepath.Join(b.dir, "log4j2.properties") }

// format writes the broker's configuration and prepares its data folder.
func (b *broker) format(ctx context.Context, properties map[string]string, sec *security) error {
	var file bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		fmt.Fprintf(&file, "%s=%s\n", name, properties[name])
	}
	err := errors.Join(os.WriteFile(b.propertiesFile(), file.Bytes(), 0o600), os.WriteFile(b.loggingFile(), log4j, 0o600))
	if err != nil {
		return err
	}
	args := []string{
		"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", filepath.Join(b.jars, "libs", "*"),
		"kafka.tools.StorageTool", "format", "-t", clusterID, "-c", b.propertiesFile(),
	}
	if sec != nil {
		args = append(args, "--add-scram", sec.scramCredential())
	}
	java := exec.CommandContext(ctx, "java", args...) //nolint:gosec // nothing that a user chose
	if out, err := java.CombinedOutput(); err != nil {
		return fmt.Errorf("formatting broker %d: %w\n%s", b.id, err, out)
	}
	return nil
}

// start starts the process and waits until it says that it has started.
func (b *broker) start(ctx context.Context) error {
	if b.running() {
		return fmt.Errorf("broker %d runs already", b.id)
	}
	for _, p := range b.proxies {
		if err := p.open(); err != nil {
			return fmt.Errorf("starting broker %d: %w", b.id, err)
		}
	}
	started := b.log.expect("Kafka Server started")
	b.cmd = exec.Command("java", //nolint:noctx,gosec // it outlives ctx, and nothing in it is what a user chose
		"-Xms64m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
		"-Dlog4j2.configurationFile="+b.loggingFile(),
		"-cp", filepath.Join(b.jars, "libs", "*"), "kafka.Kafka", b.propertiesFile())
	b.cmd.Stdout, b.cmd.Stderr, b.cmd.SysProcAttr = b.log, b.log, procAttr()
	done, forked := make(chan struct{}), make(chan error)
	cmd := b.cmd
	go func() {
		// The kernel takes the thread that forked for the parent: it must live as long as the child.
		runtime.LockOSThread()
		defer close(done)
		err := cmd.Start()
		forked <- err
		if err == nil {
			_ = cmd.Wait()
		}
		for _, p := range b.proxies {
			p.close()
		}
	}()
	if err := <-forked; err != nil {
		return fmt.Errorf("starting broker %d: %w", b.id, err)
	}
	b.done = done
	select {
	case <-started:
		return nil
	case <-done:
		return fmt.Errorf("broker %d ended with %v before it had started", b.id, cmd.ProcessState)
	case <-ctx.Done():
		return fmt.Errorf("waiting for broker %d: %w", b.id, ctx.Err())
	}
}

func (b *broker) running() bool {
	if b.done == nil {
		return false
	}
	select {
	case <-b.done:
		return false
	default:
		return true
	}
}

// kill ends the process at once, frozen or not, and waits for it.
func (b *broker) kill() {
	if b.running() {
		_ = b.cmd.Process.Kill()
		<-b.done
	}
}

// stop asks the process to end and waits for it. One that does not in time is killed: without the others it has no
// quorum to hand its partitions over with.
func (b *broker) stop() error {
	if !b.running() {
		return fmt.Errorf("broker %d does not run", b.id)
	}
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping broker %d: %w", b.id, err)
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-b.done:
		return nil
	case <-limit.C:
		b.kill()
		return fmt.Errorf("broker %d did not end within %s and was killed", b.id, stopLimit)
	}
}

// port is a port of 127.0.0.1 that nobody else gets while the broker is down: a socket that is bound and does not listen
// keeps it, and lets in a listener that sets SO_REUSEADDR, as Java does and Go does not for a port that it picks.
type port struct {
	addr string
	fd   int
}

func reserve() (*port, error) {
	syscall.ForkLock.RLock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, fmt.Errorf("reserving a port: %w", err)
	}
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var name syscall.Sockaddr
	if err == nil {
		name, err = syscall.Getsockname(fd)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return nil, fmt.Errorf("reserving a port: %w", err)
	}
	in, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		_ = syscall.Close(fd)
		return nil, errors.New("reserving a port: not an IPv4 address")
	}
	return &port{fd: fd, addr: netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String()}, nil
}

func (p *port) release() { _ = syscall.Close(p.fd) }

// brokerLog keeps the end of what a broker's processes print. It implements io.Writer.
type brokerLog struct {
	mu       sync.Mutex
	text     []byte
	from     int // where in text what is expected may be
	expected []byte
	seen     chan struct{} // closed when expected has been printed; nil when nothing is expected
}

const maxLogBytes = 64 << 10

// expect returns a channel that is closed when text is printed from now on.
func (l *brokerLog) expect(text string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.from, l.expected, l.seen = len(l.text), []byte(text), make(chan struct{})
	return l.seen
}

func (l *brokerLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if l.seen != nil && bytes.Contains(l.text[l.from:], l.expected) {
		close(l.seen)
		l.seen = nil
	}
	if over := len(l.text) - maxLogBytes; over > maxLogBytes {
		l.text, l.from = slices.Delete(l.text, 0, over), max(0, l.from-over)
	}
	return len(p), nil
}

func (l *brokerLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text[max(0, len(l.text)-maxLogBytes):])
}
