package diagnose

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/ClickHouse/clickhouse-go/v2/lib/proto"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"getimmutable.dev/immutable/schemas"
)

// Findings about what no test can have: brokers, servers and disks that are broken or old.

func wantOne(t *testing.T, found []Finding, level Level, seen string) {
	t.Helper()
	for _, f := range found {
		if f.Level == level && strings.Contains(f.Seen+" "+f.Why, seen) {
			return
		}
	}
	t.Errorf("no %s with %q in %+v", level, seen, found)
}

func TestSkew(t *testing.T) {
	asked := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	answered := asked.Add(200 * time.Millisecond)
	for _, tc := range []struct {
		shown time.Time
		level Level
		seen  string
	}{
		{asked, OK, "+0.000 s"},
		{asked.Add(100 * time.Millisecond), OK, "+0.000 s from this machine's, give or take 0.200 s"},
		{answered.Add(time.Second), OK, "+1.000 s"},
		{asked.Add(-time.Second), OK, "-1.000 s"},
		{answered.Add(time.Second + time.Millisecond), Warning, "+1.001 s"},
		{asked.Add(-1001 * time.Millisecond), Warning, "-1.001 s"},
		{answered.Add(30 * time.Second), Warning, "+30.000 s"},
		{answered.Add(time.Hour), Problem, "+3600.000 s"},
		{asked.Add(-31 * time.Second), Problem, "-31.000 s"},
	} {
		found := skew("its clock", asked, tc.shown, answered)
		if len(found) != 1 {
			t.Errorf("%+v", found)
		}
		wantOne(t, found, tc.level, tc.seen)
	}
}

func TestPartitionsOutOfSync(t *testing.T) {
	three := schemas.TopicLayout{Replicas: 3}
	detail := func(internal bool, p kadm.PartitionDetail) kadm.TopicDetails {
		p.Topic, p.Partition = "x", 7
		if internal {
			p.Partition = 0
		}
		return kadm.TopicDetails{"x": {Topic: "x", IsInternal: internal, Partitions: kadm.PartitionDetails{p.Partition: p}}}
	}
	all := []int32{1, 2, 3}
	for _, tc := range []struct {
		name    string
		details kadm.TopicDetails
		layout  schemas.TopicLayout
		level   Level
		seen    string
	}{
		{"sound", detail(false, kadm.PartitionDetail{Leader: 1, Replicas: all, ISR: all}), three, OK, "1 partitions"},
		{"no leader", detail(false, kadm.PartitionDetail{Leader: -1, Replicas: all, ISR: []int32{2}}), three, Problem, "x/7 has no leader"},
		{
			"an error", detail(false, kadm.PartitionDetail{Leader: 1, Replicas: all, ISR: all, Err: kerr.ReplicaNotAvailable}), three,
			Problem, "REPLICA_NOT_AVAILABLE",
		},
		{"one behind", detail(false, kadm.PartitionDetail{Leader: 1, Replicas: all, ISR: []int32{1, 3}}), three, Warning, "in sync are [1 3] of [1 2 3]"},
		{"two behind", detail(false, kadm.PartitionDetail{Leader: 1, Replicas: all, ISR: []int32{1}}), three, Problem, "below min.insync.replicas, 2"},
		{
			"an internal topic with one replica", detail(true, kadm.PartitionDetail{Leader: 1, Replicas: []int32{1}, ISR: []int32{1, 2}}), three,
			Warning, "x has 1 replicas",
		},
		{
			"single replicas", detail(false, kadm.PartitionDetail{Leader: 1, Replicas: []int32{1}, ISR: []int32{1}}),
			schemas.TopicLayout{Replicas: 1},
			Warning, "topics have a single replica",
		},
	} {
		t.Run(tc.name, func(t *testing.T) { wantOne(t, inSync(tc.details, tc.layout), tc.level, tc.seen) })
	}
}

// told is a ClickHouse that answers with a version, and to every question with the same rows.
type told struct {
	driver.Conn

	major uint64
	rows  string // a JSON array
}

func (c told) ServerVersion() (*driver.ServerVersion, error) {
	return &driver.ServerVersion{Version: proto.Version{Major: c.major, Minor: 3}}, nil
}

func (c told) Select(_ context.Context, dest any, _ string, _ ...any) error {
	return json.Unmarshal([]byte(c.rows), dest)
}

func TestOldClickHouse(t *testing.T) {
	for major, level := range map[uint64]Level{minClickHouse - 1: Warning, minClickHouse: OK, minClickHouse + 1: OK} {
		wantOne(t, (&server{conn: told{major: major}}).version(t.Context()), level, fmt.Sprintf("ClickHouse %d.3", major))
	}
}

func TestReadOnlyDisk(t *testing.T) {
	s := &server{conn: told{rows: `[{"Name":"cold","Free":900,"Total":1000,"ReadOnly":true},{"Name":"hot","Free":1,"Total":1000}]`}}
	found := s.disks(t.Context())
	wantOne(t, found, Problem, "disk cold is read-only")
	wantOne(t, found, OK, "disk hot")
}
