package diagnose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/control"
	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

// hungAfter is how long past its own timeout a transaction may be open: the broker looks for those every 10 s.
const hungAfter = 15 * time.Second

// Keys that expire within keyWarning are a warning.
const keyWarning = 7 * 24 * time.Hour

// cluster is a Kafka to be looked at.
type cluster struct {
	cfg    Config
	logger *slog.Logger
	cl     *kgo.Client
	admin  *kadm.Client
}

// clientOptions are of a client that gives up well before a check's time does, so that what could not be reached is said.
func clientOptions(cfg Config, logger *slog.Logger) ([]kgo.Opt, error) {
	opts, err := cfg.Kafka.Options(logger)
	if err != nil {
		return nil, err
	}
	patience := cfg.CheckTimeout / 2
	opts = append(opts, kgo.RetryTimeout(patience), kgo.RequestTimeoutOverhead(max(patience, 100*time.Millisecond)))
	if !cfg.Kafka.TLS.Enabled { // with TLS the dialer is another
		opts = append(opts, kgo.DialTimeout(patience))
	}
	return opts, nil
}

func newClient(cfg Config, logger *slog.Logger) (*kgo.Client, error) {
	opts, err := clientOptions(cfg, logger)
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("kafka client: %w", err)
	}
	return cl, nil
}

func newCluster(cfg Config, logger *slog.Logger) (*cluster, error) {
	// What the client would log is among the findings.
	cl, err := newClient(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	return &cluster{cfg: cfg, logger: logger, cl: cl, admin: kadm.NewClient(cl)}, nil
}

func (k *cluster) close() { k.cl.Close() }

func (k *cluster) reachable(ctx context.Context) []Finding {
	const why = "no event is accepted and none is sealed"
	metadata, err := k.admin.BrokerMetadata(ctx)
	if err != nil {
		return []Finding{{
			Level: Problem, Seen: fmt.Sprintf("%s: %v", strings.Join(k.cfg.Kafka.Brokers, ","), err), Why: why, Do: k.remedy(err),
		}}
	}
	return ok("%s answers; the controller is broker %d", strings.Join(k.cfg.Kafka.Brokers, ","), metadata.Controller)
}

// brokers asks each one: one that is down hides nothing else.
func (k *cluster) brokers(ctx context.Context) []Finding {
	metadata, err := k.admin.BrokerMetadata(ctx)
	if err != nil {
		return failed("asking for the brokers", err)
	}
	var found []Finding
	for _, b := range metadata.Brokers {
		if _, err := k.cl.Broker(int(b.NodeID)).Request(ctx, kmsg.NewPtrApiVersionsRequest()); err != nil {
			found = append(found, Finding{
				Level: Problem, Seen: fmt.Sprintf("broker %d, which calls itself %s, does not answer: %v", b.NodeID,
					net.JoinHostPort(b.Host, fmt.Sprint(b.Port)), err),
				Why: "its partitions cannot be read or written from here",
				Do:  "start it, or correct its advertised.listeners to an address that this machine reaches",
			})
		}
	}
	if n := len(metadata.Brokers); n < int(k.cfg.Layout.Replicas) {
		found = append(found, Finding{
			Level: Problem, Seen: fmt.Sprintf("%d of the %d brokers that each topic needs are there", n, k.cfg.Layout.Replicas),
			Why: "each further loss may stop the installation", Do: "start the others; their logs say why they ended",
		})
	}
	return orOK(found, "brokers that answer: %d", len(metadata.Brokers))
}

// remedy says what to do about a cluster that cannot be reached.
func (k *cluster) remedy(err error) string {
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed), errors.Is(err, kerr.UnsupportedSaslMechanism):
		return "correct --kafka-sasl, --kafka-sasl-user and the password in --kafka-sasl-password-file"
	case strings.Contains(err.Error(), "x509:"):
		return "give the authority that signed the brokers' certificates with --kafka-tls-ca, and names that are in them with --kafka"
	case strings.Contains(err.Error(), "tls:"):
		return "this listener speaks no TLS, or wants a client's certificate: correct the port, --kafka-tls, --kafka-tls-cert and --kafka-tls-key"
	case errors.Is(err, io.EOF), strings.Contains(err.Error(), "SASL"), strings.Contains(err.Error(), "tls endpoint"):
		return "the listener closes the connection: it wants TLS (--kafka-tls) or SASL (--kafka-sasl), or another user or password than " +
			"--kafka-sasl-user and --kafka-sasl-password-file give"
	case isTimeout(err):
		return "nothing answers there: check address, firewall and whether the process hangs"
	}
	return "start Kafka, or correct --kafka"
}

func (k *cluster) version(ctx context.Context) []Finding {
	versions, err := k.admin.ApiVersions(ctx)
	if err != nil {
		return failed("asking for versions", err)
	}
	var found []Finding
	var seen []string
	for _, v := range versions.Sorted() {
		if v.Err != nil {
			continue // the check kafka says which broker does not answer
		}
		guess := v.VersionGuess()
		if !strings.HasPrefix(guess, "v") {
			guess = "of a version that is not known"
		}
		if text := fmt.Sprintf("broker %d is %s", v.NodeID, guess); !slices.Contains(seen, text) {
			seen = append(seen, text)
		}
		// KIP-447: a transaction that commits offsets is fenced by the group's generation.
		if n, _ := v.KeyMaxVersion(int16(kmsg.TxnOffsetCommit)); n < 3 {
			found = append(found, Finding{
				Level: Problem, Seen: fmt.Sprintf("broker %d is %s", v.NodeID, guess),
				Why: "before 2.5 Kafka does not fence a processor that lost its partitions: exactly once does not hold", Do: "upgrade Kafka to 4",
			})
		} else if n < 5 { // with transactions of version 2, KIP-890, which 3.9 has not
			found = append(found, Finding{
				Level: Warning, Seen: fmt.Sprintf("broker %d is %s", v.NodeID, guess),
				Why: "before 4.0 a delayed end of a transaction can end the next one; what is promised was tested with Kafka 4", Do: "upgrade Kafka to 4",
			})
		}
	}
	return orOK(found, "%s", strings.Join(seen, ", "))
}

func (k *cluster) certificates(ctx context.Context) []Finding {
	tlsConfig, err := k.cfg.Kafka.TLS.Load()
	if err != nil {
		return failed("reading certificates", err)
	}
	metadata, err := k.admin.BrokerMetadata(ctx)
	if err != nil {
		return failed("asking for the brokers", err)
	}
	var addrs []string
	for _, b := range metadata.Brokers {
		addrs = append(addrs, net.JoinHostPort(b.Host, fmt.Sprint(b.Port)))
	}
	return shown(ctx, addrs, tlsConfig)
}

// clock asks the quorum for its state: the active controller stamps its own entry with the present time (KIP-836).
func (k *cluster) clock(ctx context.Context) []Finding {
	req := kmsg.NewPtrDescribeQuorumRequest()
	topic := kmsg.NewDescribeQuorumRequestTopic()
	topic.Topic = "__cluster_metadata"
	topic.Partitions = append(topic.Partitions, kmsg.NewDescribeQuorumRequestTopicPartition())
	req.Topics = append(req.Topics, topic)
	asked := time.Now()
	resp, err := req.RequestWith(ctx, k.cl)
	answered := time.Now()
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return []Finding{{Level: NotRun, Seen: fmt.Sprintf("this Kafka does not tell its time: %v", err)}}
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			for _, v := range p.CurrentVoters {
				if v.ReplicaID == p.LeaderID && v.LastFetchTimestamp > 0 {
					// Kafka cuts to milliseconds.
					return skew("the active controller's clock", asked.Truncate(time.Millisecond), time.UnixMilli(v.LastFetchTimestamp), answered)
				}
			}
		}
	}
	return []Finding{{Level: NotRun, Seen: "this Kafka does not tell its time: the controller's is not in its answer"}}
}

// partitions looks at the replicas of ours, and of the internal topics that groups and transactions live on.
func (k *cluster) partitions(ctx context.Context) []Finding {
	topics := schemas.Topics(k.cfg.Layout)
	names := []string{"__consumer_offsets", "__transaction_state"}
	for _, t := range topics {
		names = append(names, t.Name)
	}
	details, err := k.admin.ListTopicsWithInternal(ctx, names...)
	if err != nil {
		return failed("asking for the topics", err)
	}
	return inSync(details, k.cfg.Layout)
}

func inSync(details kadm.TopicDetails, layout schemas.TopicLayout) []Finding {
	least := max(1, int(layout.Replicas)-1)
	var found []Finding
	n := 0
	for _, t := range details.Sorted() {
		if t.Err != nil {
			continue // the check topics says which are missing
		}
		for _, p := range t.Partitions.Sorted() {
			n++
			f := Finding{
				Seen: fmt.Sprintf("%s/%d: in sync are %v of %v", p.Topic, p.Partition, p.ISR, p.Replicas),
				Why:  "another lost broker would stop it", Do: "start the brokers that are missing; if they run, read in their logs why they do not follow",
			}
			switch {
			case p.Err != nil || p.Leader < 0:
				f.Level, f.Seen = Problem, fmt.Sprintf("%s/%d has no leader: %v", p.Topic, p.Partition, cmp.Or(p.Err, error(kerr.LeaderNotAvailable)))
				f.Why = "it can be neither read nor written"
			case len(p.ISR) < least:
				f.Level, f.Why = Problem, fmt.Sprintf("below min.insync.replicas, %d, nothing is accepted", least)
			case len(p.ISR) < len(p.Replicas):
				f.Level = Warning
			case t.IsInternal && len(p.Replicas) < int(layout.Replicas):
				if p.Partition > 0 {
					continue // once a topic is enough
				}
				f.Level, f.Seen = Warning, fmt.Sprintf("%s has %d replicas", p.Topic, len(p.Replicas))
				f.Why = "with the loss of its broker the place of every consumer group or transaction is lost"
				f.Do = "set offsets.topic.replication.factor and transaction.state.log.replication.factor to 3, and kafka-reassign-partitions.sh"
			default:
				continue
			}
			found = append(found, f)
		}
	}
	if layout.Replicas < 2 {
		found = append(found, Finding{
			Level: Warning, Seen: "topics have a single replica", Why: "the loss of one disk is the loss of accepted events",
			Do: "for production, three brokers and a new installation without --allow-single-replica",
		})
	}
	return orOK(found, "%d partitions have all their replicas in sync", n)
}

// permissions looks at what the user that check runs as may do. It is the services' where the flags are theirs.
func (k *cluster) permissions(ctx context.Context) []Finding {
	var found []Finding
	refuse := func(what string, operation kadm.ACLOperation, got []kadm.ACLOperation) {
		if !slices.Contains(got, operation) && !slices.Contains(got, kmsg.ACLOperationAll) {
			found = append(found, k.refused(what, operation.String()))
		}
	}
	ctx = kadm.WithAuthorizedOps(ctx)
	topics := schemas.Topics(k.cfg.Layout)
	for _, topic := range topics {
		details, err := k.admin.ListTopics(ctx, topic.Name)
		if err == nil {
			err = details[topic.Name].Err
		}
		switch {
		case err == nil:
			for _, op := range []kadm.ACLOperation{kmsg.ACLOperationRead, kmsg.ACLOperationWrite, kmsg.ACLOperationDescribeConfigs} {
				refuse("topic "+topic.Name, op, details[topic.Name].AuthorizedOperations)
			}
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			found = append(found, k.refused("topic "+topic.Name, "DESCRIBE"))
		case !errors.Is(err, kerr.UnknownTopicOrPartition): // the check topics says which are missing
			return failed("asking for topic "+topic.Name, err)
		}
	}
	for _, g := range groups {
		name := k.cfg.Kafka.Group(g.name)
		var described kadm.DescribedGroups
		err := coordinated(ctx, func() (err error) {
			if described, err = k.admin.DescribeGroups(ctx, name); err == nil {
				err = described[name].Err
			}
			return err
		})
		switch {
		case errors.Is(err, kerr.GroupAuthorizationFailed):
			found = append(found, k.refused("group "+name, "DESCRIBE and READ"))
		case err == nil:
			if state := described[name].State; state != "Dead" { // of a group that is not there nothing is said
				refuse("group "+name, kmsg.ACLOperationRead, described[name].AuthorizedOperations)
			}
		}
	}
	return orOK(found, "%d topics may be read and written, and groups joined", len(topics))
}

func (k *cluster) refused(what, operation string) Finding {
	user := cmp.Or(k.cfg.Kafka.SASL.User, "the user of these connections")
	return Finding{
		Level: Problem, Seen: fmt.Sprintf("%s: %s is not allowed to %s", what, user, operation), Why: "a service with this user fails at it",
		Do: fmt.Sprintf("kafka-acls.sh --add --allow-principal User:%s --operation All --resource-pattern-type prefixed "+
			"--topic %[2]s --group %[2]s --transactional-id %[2]s", cmp.Or(k.cfg.Kafka.SASL.User, "NAME"), k.cfg.Kafka.TopicPrefix),
	}
}

// transactions asks the coordinators of our transactional ids for their state.
func (k *cluster) transactions(ctx context.Context) []Finding {
	id := k.cfg.Kafka.Group(schemas.TransactionalIDConfig)
	const why = "nothing is sealed and nothing configured without transactions"
	// The answer that there is no such id comes from a coordinator that works.
	var described kadm.DescribedTransactions
	err := coordinated(ctx, func() (err error) {
		if described, err = k.admin.DescribeTransactions(ctx, id); err == nil {
			err = described[id].Err
		}
		return err
	})
	switch {
	case err == nil, errors.Is(err, kerr.TransactionalIDNotFound):
	case errors.Is(err, kerr.TransactionalIDAuthorizationFailed):
		return []Finding{k.refused("transactional id "+id, "DESCRIBE and WRITE")}
	default:
		return []Finding{{
			Level: Problem, Seen: fmt.Sprintf("the coordinator of %s does not answer: %v", id, err), Why: why,
			Do: "see the check kafka partitions for __transaction_state; kafka-topics.sh --describe --topic __transaction_state",
		}}
	}
	listed, err := k.admin.ListTransactions(ctx, nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort"})
	if err != nil {
		return failed("asking for open transactions", err)
	}
	var open []string
	for _, t := range listed.Sorted() {
		if strings.HasPrefix(t.TxnID, k.cfg.Kafka.TopicPrefix) && t.State != "CompleteCommit" && t.State != "CompleteAbort" && t.State != "Empty" {
			open = append(open, t.TxnID)
		}
	}
	found, err := k.hanging(ctx)
	if err != nil {
		return failed("asking for hanging transactions", err)
	}
	if len(open) == 0 {
		return orOK(found, "the coordinator answers; no transaction is open")
	}
	if described, err = k.admin.DescribeTransactions(ctx, open...); err != nil {
		return failed("asking about open transactions", err)
	}
	for _, t := range described.Sorted() {
		if t.Err != nil || t.StartTimestamp <= 0 {
			continue // it has ended since
		}
		for _, topic := range slices.Sorted(maps.Keys(t.Topics)) {
			age := time.Since(time.UnixMilli(t.StartTimestamp))
			if age > time.Duration(t.TimeoutMillis)*time.Millisecond+hungAfter {
				found = append(found, Finding{
					Level: Problem, Seen: fmt.Sprintf("transaction %s is %s for %d s and its timeout is %d s", t.TxnID, t.State, int(age.Seconds()), t.TimeoutMillis/1000),
					Why: "readers of " + topic + " stop before it until it ends",
					Do:  "kafka-transactions.sh find-hanging, then abort; the broker that coordinates it is " + fmt.Sprint(t.Coordinator),
				})
				break
			}
		}
	}
	return orOK(found, "the coordinator answers; %d transactions are open, none past its time", len(open))
}

// hanging finds transactions that are open in a partition and that no coordinator knows of: nothing will end them. A
// coordinator knows of a transaction from before its first record until after its last marker, so one that it does not
// know of, and that is open both before and after it was asked, hangs.
func (k *cluster) hanging(ctx context.Context) (found []Finding, err error) {
	before, err := k.open(ctx)
	if err != nil || len(before) == 0 {
		return nil, err
	}
	listed, err := k.admin.ListTransactions(ctx, nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort"})
	if err != nil {
		return nil, fmt.Errorf("listing transactions: %w", err)
	}
	known := make(map[int64]bool)
	for _, t := range listed {
		known[t.ProducerID] = true
	}
	after, err := k.open(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range before {
		if known[t.producer] || !slices.Contains(after, t) {
			continue
		}
		found = append(found, Finding{
			Level: Problem,
			Seen:  fmt.Sprintf("a transaction on %s/%d is open from offset %d, and its coordinator has ended it", t.topic, t.partition, t.from),
			Why:   "readers of this partition stop before it, for ever",
			Do: fmt.Sprintf("kafka-transactions.sh --bootstrap-server %s abort --topic %s --partition %d --start-offset %d",
				strings.Join(k.cfg.Kafka.Brokers, ","), t.topic, t.partition, t.from),
		})
	}
	return found, nil
}

// openTransaction is one as a partition's leader has it.
type openTransaction struct {
	topic          string
	partition      int32
	producer, from int64 // producer id, first offset
}

// open returns the transactions that are open in partitions of ours, ordered.
func (k *cluster) open(ctx context.Context) (open []openTransaction, err error) {
	topics := make(kadm.TopicsSet)
	for _, t := range schemas.Topics(k.cfg.Layout) {
		topics.Add(t.Name)
	}
	described, err := k.admin.DescribeProducers(ctx, topics)
	if err != nil {
		return nil, fmt.Errorf("describing producers: %w", err)
	}
	for _, p := range described.SortedProducers() {
		if p.CurrentTxnStartOffset >= 0 {
			open = append(open, openTransaction{p.Topic, p.Partition, p.ProducerID, p.CurrentTxnStartOffset})
		}
	}
	return open, nil
}

// coordinated asks again while the coordinator is not there: a new cluster makes the topic that it lives on when it is
// first asked, which takes seconds.
func coordinated(ctx context.Context, ask func() error) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if !errors.Is(err, kerr.CoordinatorNotAvailable) && !errors.Is(err, kerr.CoordinatorLoadInProgress) && !errors.Is(err, kerr.NotCoordinator) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (k *cluster) topics(ctx context.Context) []Finding {
	topics := schemas.Topics(k.cfg.Layout)
	err := kafka.CheckTopics(ctx, k.cl, topics)
	if err == nil {
		return ok("%d topics are as they must be", len(topics))
	}
	different, is := errors.AsType[*kafka.TopicsError](err)
	if !is {
		return failed("asking for the topics", err)
	}
	var found []Finding
	for _, d := range different.Differences {
		f := Finding{Level: Problem, Seen: d, Why: "services do not start on topics that differ", Do: "immutable topics create, with the flags of the services"}
		switch topic, what, _ := strings.Cut(d, ": "); {
		case strings.Contains(what, " partition"), strings.Contains(what, " replica") && !strings.Contains(what, "."):
			f.Do = "give the flags that the topics were created with (--partitions, --replicas, --allow-single-replica)"
		case strings.Contains(what, ", must be "):
			name, _, _ := strings.Cut(what, " is ")
			_, value, _ := strings.Cut(what, ", must be ")
			f.Do = fmt.Sprintf("kafka-configs.sh --alter --entity-type topics --entity-name %s --add-config %s=%s", topic, name, value)
		}
		found = append(found, f)
	}
	return found
}

// configured reads what is configured, under the master key.
func (k *cluster) configured(ctx context.Context) []Finding {
	if k.cfg.MasterKey == nil {
		return []Finding{{Level: NotRun, Seen: "--master-key-file or --data was not given"}}
	}
	key, err := k.cfg.MasterKey()
	if err != nil {
		return []Finding{{
			Level: Problem, Seen: err.Error(), Why: "without it no API key opens anything",
			Do: "restore it from a backup, with mode 0600, owned by the services' user",
		}}
	}
	w, err := control.NewWriter(control.WriterConfig{
		Kafka: k.cfg.Kafka, MasterKey: key, Partitions: k.cfg.Layout.Partitions,
		Timeout: max(time.Second, min(k.cfg.CheckTimeout, time.Minute)),
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		return failed("opening the configuration", err)
	}
	s, err := w.Snapshot(ctx)
	if errors.Is(err, control.ErrMasterKey) {
		return []Finding{{
			Level: Problem, Seen: err.Error(), Why: "with this master key every API key is answered 503, and nothing can be changed",
			Do: "give the master key file that the installation was created with: a backup, or another service's",
		}}
	}
	if err != nil {
		return failed("reading what is configured", err)
	}
	var found []Finding
	if len(s.Workspaces) == 0 {
		found = append(found, Finding{
			Level: Warning, Seen: "there is no workspace", Why: "nobody can report an event", Do: "immutable workspaces create NAME",
		})
	}
	for _, k := range s.Keys {
		left := time.Until(k.ExpiresAt)
		if k.ExpiresAt.IsZero() || left > keyWarning {
			continue
		}
		f := Finding{
			Level: Warning, Seen: fmt.Sprintf("API key %q, which ends in %s, expires at %s", k.Name, k.Hint, k.ExpiresAt.Format(time.RFC3339)),
			Why: "whoever uses it is refused from then on", Do: "immutable keys create --name " + k.Name + " with the same workspace and scopes, and hand it over",
		}
		if left < 0 {
			f.Seen = fmt.Sprintf("API key %q, which ends in %s, expired at %s", k.Name, k.Hint, k.ExpiresAt.Format(time.RFC3339))
		}
		found = append(found, f)
	}
	return orOK(found, "workspaces: %d, API keys: %d, under this master key", len(s.Workspaces), len(s.Keys))
}
