package attacks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/proto"

	"getimmutable.dev/immutable/event"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/internal/kafka/kafkatest"
	"getimmutable.dev/immutable/ledger"
	"getimmutable.dev/immutable/schemas"
	"getimmutable.dev/immutable/schemas/recordpb"
)

// Attacks on who makes the ledger, through the services of the program: they halt, and say why.

// stepLimit is what a service may take over one thing. It is never reached when all is well.
const stepLimit = 40 * time.Second

// installation is a Kafka and services of the program on it.
type installation struct {
	*kafkatest.Cluster

	t      *testing.T
	dir    string
	events int
}

func newInstallation(t *testing.T) *installation {
	t.Helper()
	i := &installation{Cluster: kafkatest.Start(t), t: t, dir: t.TempDir()}
	i.run("notary-key", "create", "--file="+i.path("notary.key"), "--origin="+origin)
	return i
}

const origin = "example.com/halts"

func (i *installation) path(name string) string { return filepath.Join(i.dir, name) }

// run runs the program to its end.
func (i *installation) run(args ...string) string {
	i.t.Helper()
	path, err := binary()
	if err != nil {
		i.t.Fatal(err)
	}
	out, err := exec.CommandContext(i.t.Context(), path, args...).CombinedOutput()
	if err != nil {
		i.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// service is one process of the program.
type service struct {
	cmd  *exec.Cmd
	addr string // of health
	log  *os.File
	done chan error
}

// start starts a service, which the test's end kills.
func (i *installation) start(name string, args ...string) *service {
	i.t.Helper()
	path, err := binary()
	if err != nil {
		i.t.Fatal(err)
	}
	s := &service{addr: freeAddr(i.t), done: make(chan error, 1)}
	if s.log, err = os.CreateTemp(i.dir, name+"-*.log"); err != nil {
		i.t.Fatal(err)
	}
	all := append([]string{name, "--internal-addr=" + s.addr}, args...)
	if name != "witness" {
		all = append(all, "--kafka="+strings.Join(i.Config.Brokers, ","), "--partitions=4", "--replicas=1", "--allow-single-replica")
	}
	s.cmd = exec.Command(path, all...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		i.t.Fatal(err)
	}
	go func() { s.done <- s.cmd.Wait() }()
	i.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
		if i.t.Failed() {
			i.t.Logf("%s:\n%.6000s", name, s.output(i.t))
		}
		_ = s.log.Close()
	})
	return s
}

func (s *service) output(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(s.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// stop asks a service to end, and waits for it.
func (i *installation) stop(s *service) {
	i.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		i.t.Fatal(err)
	}
	if err := <-s.done; err != nil {
		i.t.Fatalf("%v\n%s", err, s.output(i.t))
	}
	s.done <- nil // for the cleanup
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// await waits until a condition holds.
func (i *installation) await(what string, condition func(ctx context.Context) error) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), stepLimit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		last := condition(ctx)
		if last == nil {
			return
		}
		if err == nil || ctx.Err() == nil { // not that the time is over
			err = last
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			i.t.Fatalf("waiting for %s: %v", what, err)
		}
	}
}

// halts waits until one of some services, which leads, is not ready for a reason.
func (i *installation) halts(reason string, services ...*service) {
	i.t.Helper()
	i.await("halting: "+reason, func(ctx context.Context) error {
		var others error
		for _, s := range services {
			err := s.halted(ctx, reason)
			if err == nil {
				return nil
			}
			others = errors.Join(others, err)
		}
		return others
	})
}

// halted says why a service is not known to be halted for a reason.
func (s *service) halted(ctx context.Context, reason string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.addr+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), reason) {
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

func (i *installation) processor() *service {
	i.t.Helper()
	return i.start("processor", "--instance=one")
}

func (i *installation) notary(instance, lock string, args ...string) *service {
	i.t.Helper()
	return i.start("notary", append([]string{
		"--instance=" + instance, "--key-file=" + i.path("notary.key"), "--lock-file=" + i.path(lock), "--epoch-interval=200ms", "--idle-interval=500ms",
	}, args...)...)
}

// produce accepts events of one workspace.
func (i *installation) produce(n int) {
	i.t.Helper()
	var records []*kgo.Record
	for range n {
		id := sha256.Sum256(fmt.Appendf(nil, "event %d", i.events))
		lane := uint32(i.events) % uint32(i.Layout.Partitions)
		i.events++
		workspace := [16]byte{1}
		body := []byte(`{"action":"deploy"}`)
		root, fields, err := ledger.RecomputeBodyRoot([16]byte(id[16:]), body)
		if err != nil {
			i.t.Fatal(err)
		}
		value, err := proto.Marshal(&recordpb.Event{
			Id: id[:16], Kind: recordpb.Kind_KIND_EVENT, Workspace: workspace[:], Incarnation: bytes.Repeat([]byte{2}, 16), Lane: lane,
			Lanes: uint32(i.Layout.Partitions), RecordedAt: time.Now().UnixMicro(), Seed: id[16:], Body: body, FieldCount: uint32(fields), BodyRoot: root[:],
			Action: "deploy",
		})
		if err != nil {
			i.t.Fatal(err)
		}
		records = append(records, &kgo.Record{
			Topic: schemas.TopicEvents, Partition: event.Partition(workspace, lane, i.Layout.Partitions), Key: event.RecordKey(workspace, lane), Value: value,
		})
	}
	i.Produce(i.t, records...)
}

// signed returns the root of each size that a checkpoint was signed of, and fails where one has two.
func (i *installation) signed(ctx context.Context) (map[uint64]ledger.Hash, error) {
	admin := kadm.NewClient(i.Client(i.t))
	ends, err := admin.ListCommittedOffsets(ctx, i.Config.Topic(schemas.TopicCheckpoints))
	if err != nil {
		return nil, err
	}
	end, _ := ends.Lookup(i.Config.Topic(schemas.TopicCheckpoints), 0)
	cl := i.Client(i.t, kgo.ConsumeTopics(i.Config.Topic(schemas.TopicCheckpoints)), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxWait(50*time.Millisecond))
	defer cl.Close()
	roots := map[uint64]ledger.Hash{}
	for next := int64(0); next < end.Offset; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return nil, err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			next = r.Offset + 1
			if r.Attrs.IsControl() || !strings.HasPrefix(string(r.Key), "checkpoint/") {
				return
			}
			m := new(recordpb.SignedCheckpoint)
			c := new(ledger.Checkpoint)
			err := proto.Unmarshal(r.Value, m)
			if err == nil {
				c, err = ledger.ParseCheckpoint(m.GetNote())
			}
			if err != nil {
				i.t.Error(err)
				return
			}
			if root, was := roots[c.Size]; was && root != c.Root {
				i.t.Errorf("size %d has roots %x and %x", c.Size, root, c.Root)
			}
			roots[c.Size] = c.Root
		})
	}
	return roots, nil
}

// awaitSigned waits for so many more checkpoints.
func (i *installation) awaitSigned(more int) {
	i.t.Helper()
	before := -1
	i.await("checkpoints", func(ctx context.Context) error {
		roots, err := i.signed(ctx)
		if err != nil {
			return err
		}
		if before < 0 {
			before = len(roots)
		}
		if len(roots) < before+more {
			return fmt.Errorf("%d checkpoints, there were %d", len(roots), before)
		}
		return nil
	})
}

// remake loses the records of topics.
func (i *installation) remake(topics ...string) {
	i.t.Helper()
	for _, topic := range topics {
		if err := i.Fake.DeleteTopic(i.Config.Topic(topic)); err != nil {
			i.t.Fatal(err)
		}
	}
	if err := kafka.CreateTopics(i.t.Context(), i.Client(i.t), schemas.Topics(i.Layout)); err != nil {
		i.t.Fatal(err)
	}
}

// TestHaltsOnTruncation: attack 24. The ledger topic is shorter than what heads and the notary's state say of it.
func TestHaltsOnTruncation(t *testing.T) {
	long(t)
	t.Parallel()
	i := newInstallation(t)
	i.produce(200)
	seal, sign := i.processor(), i.notary("a", "lock")
	i.awaitSigned(2)
	i.stop(seal)
	i.stop(sign)
	i.remake(schemas.TopicLedger)
	i.halts("the ledger ends at 0: it was truncated", i.processor())
	i.halts("halted (", i.notary("a", "lock"))
}

// TestHaltsOnPartitions: attack 24. With another number of partitions the lanes of a workspace would be in others.
func TestHaltsOnPartitions(t *testing.T) {
	t.Parallel()
	i := newInstallation(t)
	for _, topic := range []string{schemas.TopicEvents, schemas.TopicLedger} {
		resp, err := kadm.NewClient(i.Client(t)).UpdatePartitions(t.Context(), 6, i.Config.Topic(topic))
		if err == nil {
			err = resp.Error()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*service{i.processor(), i.notary("a", "lock")} {
		err := <-s.done
		s.done <- err // for the cleanup
		exit, ok := errors.AsType[*exec.ExitError](err)
		if out := s.output(t); !ok || exit.ExitCode() == 0 || !strings.Contains(out, "not starting: ") || !strings.Contains(out, "partitions") {
			t.Errorf("%v: %s", err, out)
		}
	}
}

// TestHaltsOfNotaries: attack 25. Two notaries sign one root of each size. One that was brought back from a backup, with its lock file and the topics, refuses: its
// own lock file where it is newer, else a witness remembers what it had signed.
func TestHaltsOfNotaries(t *testing.T) {
	long(t)
	t.Parallel()
	i := newInstallation(t)
	log := i.run("notary-key", "show", "--file="+i.path("notary.key"))
	i.write("trust", log)
	said := strings.Fields(i.run("witness-key", "create", "--file="+i.path("witness.key"), "--name=witness.example"))
	vkey := said[len(said)-1]
	addr := freeAddr(t)
	i.start("witness", "--addr="+addr, "--data="+i.path("witness"), "--key-file="+i.path("witness.key"), "--trust="+i.path("trust"))
	i.write("policy", fmt.Sprintf("log %switness w %s http://%s\nquorum none\n", log, vkey, addr))
	witnessed := "--witnesses=" + i.path("policy")

	i.produce(100)
	seal := i.processor()
	one, two := i.notary("a", "lock", witnessed), i.notary("b", "lock", witnessed)
	for range 3 {
		i.produce(50)
		i.awaitSigned(1)
	}
	i.stop(one)
	i.stop(two)
	i.stop(seal)

	// The topics are those of the beginning, and the machine's lock file is that of today. Either of them leads.
	i.remake(schemas.TopicCheckpoints, schemas.TopicNotaryState)
	one, two = i.notary("a", "lock"), i.notary("b", "lock")
	i.halts("halted (lock): ", one, two)
	i.stop(one)
	i.stop(two)
	// The lock file is of the beginning too.
	one, two = i.notary("a", "lock of the beginning", witnessed), i.notary("b", "lock of the beginning", witnessed)
	i.halts("halted (witness): ", one, two)
	i.stop(one)
	i.stop(two)
	if roots, err := i.signed(t.Context()); err != nil || len(roots) > 0 {
		t.Errorf("it has signed %v: %v", roots, err)
	}
}

func (i *installation) write(name, text string) {
	i.t.Helper()
	if err := os.WriteFile(i.path(name), []byte(text), 0o600); err != nil {
		i.t.Fatal(err)
	}
}
