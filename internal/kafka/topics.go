package kafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"getimmutable.dev/immutable/schemas"
)

// createdTimeout is how long a created topic may take to be known to every broker, with a leader for each partition.
const createdTimeout = 30 * time.Second

// TopicsError says that the topics of a cluster are not what this version needs.
type TopicsError struct {
	// Differences, one line each, in the order of the topics: "immutable.events: 8 partitions, must be 12".
	Differences []string
}

// Error implements error.
func (e *TopicsError) Error() string {
	return "the topics differ from what this version needs:\n  " + strings.Join(e.Differences, "\n  ") +
		"\nrun `immutable topics create` with the same flags to create missing topics; alter a topic's configuration " +
		"with Kafka's own tools; partitions and replicas are set for the life of a topic, so either give the flags " +
		"that the topics were created with, or use another prefix"
}

// CreateTopics creates the topics that are missing, and returns what CheckTopics says of all of them. It never changes
// a topic that exists. Two processes may run it side by side.
func CreateTopics(ctx context.Context, cl *kgo.Client, topics []schemas.Topic) error {
	admin := kadm.NewClient(cl)
	for _, t := range topics {
		configs := make(map[string]*string, len(t.Configs))
		for name, value := range t.Configs {
			configs[name] = &value
		}
		resp, err := admin.CreateTopic(ctx, t.Partitions, t.Replicas, configs, t.Name)
		if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			if resp.ErrMessage != "" {
				err = fmt.Errorf("%w: %s", err, resp.ErrMessage)
			}
			return fmt.Errorf("creating topic %s: %w", t.Name, err)
		}
	}
	if err := awaitTopics(ctx, cl, topics); err != nil {
		return err
	}
	return CheckTopics(ctx, cl, topics)
}

// awaitTopics waits until every broker knows all topics, with a leader for each partition. Brokers learn of a topic one
// by one: whoever asks another than the one that was asked last, as CheckTopics does, may be told that it is missing.
func awaitTopics(ctx context.Context, cl *kgo.Client, topics []schemas.Topic) error {
	ctx, cancel := context.WithTimeout(ctx, createdTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := known(ctx, cl, topics)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for created topics: %w", err)
		case <-tick.C:
		}
	}
}

// known says what the brokers do not know of topics.
func known(ctx context.Context, cl *kgo.Client, topics []schemas.Topic) error {
	cluster, err := kadm.NewClient(cl).BrokerMetadata(ctx)
	if err != nil {
		return err
	}
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range names(topics) {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	var errs []error
	for _, broker := range cluster.Brokers {
		answer, err := cl.Broker(int(broker.NodeID)).RetriableRequest(ctx, req)
		if err != nil {
			errs = append(errs, fmt.Errorf("asking broker %d: %w", broker.NodeID, err))
			continue
		}
		for _, t := range answer.(*kmsg.MetadataResponse).Topics {
			err := kerr.ErrorForCode(t.ErrorCode)
			for _, p := range t.Partitions {
				err = errors.Join(err, kerr.ErrorForCode(p.ErrorCode))
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("broker %d: topic %s: %w", broker.NodeID, *t.Topic, err))
			}
		}
	}
	return errors.Join(errs...)
}

// CheckTopics returns nil if every topic exists with the partition count, the replication and the configs that it must
// have, a *TopicsError that names every difference, or another error if the cluster could not be asked.
func CheckTopics(ctx context.Context, cl *kgo.Client, topics []schemas.Topic) error {
	admin := kadm.NewClient(cl)
	details, err := admin.ListTopics(ctx, names(topics)...)
	if err != nil {
		return fmt.Errorf("listing topics: %w", err)
	}
	present := make([]string, 0, len(topics))
	for _, t := range topics {
		switch err := details[t.Name].Err; {
		case err == nil && details.Has(t.Name):
			present = append(present, t.Name)
		case err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition):
			return fmt.Errorf("describing topic %s: %w", t.Name, err)
		}
	}
	configs, err := admin.DescribeTopicConfigs(ctx, present...)
	if err != nil {
		return fmt.Errorf("describing the topics' configs: %w", err)
	}
	var differences []string
	for _, t := range topics {
		if !slices.Contains(present, t.Name) {
			differences = append(differences, t.Name+": missing")
			continue
		}
		config, err := configs.On(t.Name, nil)
		if err == nil {
			err = config.Err
		}
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition): // it was deleted after it was listed
			differences = append(differences, t.Name+": missing")
			continue
		case err != nil:
			return fmt.Errorf("describing the configs of topic %s: %w", t.Name, err)
		}
		for _, d := range differ(t, details[t.Name].Partitions, config.Configs) {
			differences = append(differences, t.Name+": "+d)
		}
	}
	if len(differences) > 0 {
		return &TopicsError{Differences: differences}
	}
	return nil
}

// differ says where a topic that exists is not what it must be.
func differ(want schemas.Topic, partitions kadm.PartitionDetails, configs []kadm.Config) (differences []string) {
	if got := len(partitions); got != int(want.Partitions) {
		differences = append(differences, fmt.Sprintf("%s, must be %d", count(got, "partition"), want.Partitions))
	}
	if got := partitions.NumReplicas(); got != int(want.Replicas) {
		differences = append(differences, fmt.Sprintf("%s, must be %d", count(got, "replica"), want.Replicas))
	}
	values := make(map[string]*string, len(configs))
	for _, c := range configs {
		values[c.Key] = c.Value
	}
	for _, name := range slices.Sorted(maps.Keys(want.Configs)) {
		got, must := values[name], want.Configs[name]
		if got == nil {
			differences = append(differences, fmt.Sprintf("%s is not set, must be %s", name, must))
		} else if *got != must {
			differences = append(differences, fmt.Sprintf("%s is %s, must be %s", name, *got, must))
		}
	}
	return differences
}

func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

func names(topics []schemas.Topic) []string {
	list := make([]string, len(topics))
	for i, t := range topics {
		list[i] = t.Name
	}
	return list
}
