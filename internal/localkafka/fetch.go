package localkafka

import (
	"math"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// BoundFetches keeps kfake from answering a fetch with records of aborted transactions that a client takes for committed:
// it says which are aborted of every partition except the one at which the answer reaches the fetch's MaxBytes. So that
// bound is handed down to the partitions, a share to each, and the answer never reaches it. A batch that is larger than
// its share comes when its partition is the first; clients rotate them.
//
// A session would leave out of a request the partitions that share its bound, so there is none: a client whose broker has
// no room for a session names all partitions in each fetch.
func BoundFetches(cluster *kfake.Cluster) {
	cluster.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if req, ok := kreq.(*kmsg.FetchRequest); ok {
			boundPartitions(req)
		}
		return nil, nil, false
	})
}

func boundPartitions(req *kmsg.FetchRequest) {
	n := int32(0)
	for _, t := range req.Topics {
		n += int32(len(t.Partitions))
	}
	for _, t := range req.Topics {
		for i := range t.Partitions {
			t.Partitions[i].PartitionMaxBytes = min(t.Partitions[i].PartitionMaxBytes, max(1, req.MaxBytes/n))
		}
	}
	req.MaxBytes = math.MaxInt32
	req.SessionID, req.SessionEpoch = 0, -1
}
