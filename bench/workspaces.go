package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

const (
	hundredName = "a hundred workspaces, one with 90 % of the traffic"
	// workspaces, the first of which is the noisy one. The others' pages are measured.
	workspaces = 100
	// traffic of all workspaces together while pages are read, in events a second, and what they have without the noisy one.
	traffic, quietTraffic = 1000, 100
	// Each arm of a round is loaded for settle before pages are read, one at a time every pageEvery, for armTime.
	settle, armTime, pageEvery = 3 * time.Second, 15 * time.Second, 25 * time.Millisecond
)

// arm is one way to spread traffic over the workspaces: events a second of the noisy one and of all others together.
type arm struct {
	name         string
	noisy, quiet int
}

var arms = [...]arm{
	{"one sends 900 of 1,000 events/s", traffic - quietTraffic, quietTraffic},
	{"all send alike", traffic / workspaces, traffic - traffic/workspaces},
	{"that one is silent", 0, quietTraffic},
}

// hundredWorkspaces measures the first page of a quiet workspace while all are under load, against the same traffic spread
// evenly, and against the quiet ones' own. Before it, 90 % of events go to the noisy one.
func hundredWorkspaces(ctx context.Context, table io.Writer, root, dir string, count, events int) error {
	binary, err := build(ctx, root, dir)
	if err != nil {
		return err
	}
	p, err := start(ctx, root, binary, filepath.Join(dir, "hundred"))
	if err != nil {
		return err
	}
	defer p.stop()
	h := &hundred{program: p, dir: dir}
	for i := range workspaces {
		key, err := p.newWorkspace(ctx, fmt.Sprint("team-", i))
		if err != nil {
			return err
		}
		h.keys = append(h.keys, key)
	}
	quiet := max(1, events/10/(workspaces-1))
	if err := h.load(ctx, func(i int) (perSecond, n int) {
		if i == 0 {
			return math.MaxInt32, events - quiet*(workspaces-1)
		}
		return math.MaxInt32, quiet
	}); err != nil {
		return err
	}
	var p50, p99 [len(arms)][]float64
	for range count {
		for i, a := range arms {
			times, err := h.measure(ctx, a)
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			p50[i] = append(p50[i], quantile(times, 0.5))
			p99[i] = append(p99[i], quantile(times, 0.99))
		}
	}
	for i, base := range arms[1:] {
		for _, q := range []struct {
			name string
			arms [len(arms)][]float64
		}{{"p50", p50}, {"p99", p99}} {
			f := figure{
				name: fmt.Sprintf("first page of a quiet workspace of %d, %s: %s; divided by: %s", workspaces, q.name, arms[0].name, base.name),
				this: metric{unit: "ms"}, base: metric{unit: "ms"},
			}
			samples := make([]sample, 0, count)
			for round := range count {
				samples = append(samples, sample{q.arms[0][round], q.arms[i+1][round]})
			}
			f.print(table, samples)
		}
	}
	return p.stop()
}

// hundred is a running `up` with its workspaces.
type hundred struct {
	*program
	dir   string
	keys  []string // of the workspaces; the first is the noisy one's
	loads uint64   // that there were: each has a seed
}

// measure reads a first page of one quiet workspace after another while all are loaded, and returns what each took.
func (h *hundred) measure(ctx context.Context, a arm) ([]time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	loaded := make(chan error, 1)
	go func() {
		loaded <- h.load(ctx, func(i int) (perSecond, n int) {
			if i == 0 {
				return a.noisy, math.MaxInt32
			}
			return max(1, a.quiet/(workspaces-1)), math.MaxInt32
		})
	}()
	tick := time.NewTicker(pageEvery)
	defer tick.Stop()
	var times []time.Duration
	for began, i := time.Now(), 0; time.Since(began) < settle+armTime; i++ {
		select {
		case err := <-loaded:
			return nil, errors.Join(errors.New("the load has ended"), err)
		case <-tick.C:
		}
		asked := time.Now()
		status, answer, err := request(ctx, http.MethodGet, h.url+"/api/v1/events?limit=50", h.keys[1+i%(workspaces-1)], "")
		if err != nil || status != http.StatusOK {
			return nil, errors.Join(fmt.Errorf("reading a page: %d %s", status, answer), err)
		}
		if asked.Sub(began) > settle {
			times = append(times, time.Since(asked))
		}
	}
	cancel()
	return times, <-loaded
}

// load posts n events to each workspace at its rate, or until ctx ends; a rate of 0 posts none.
func (h *hundred) load(ctx context.Context, of func(workspace int) (perSecond, n int)) error {
	var (
		done sync.WaitGroup
		errs [workspaces]error
	)
	transport := &http.Transport{MaxIdleConnsPerHost: 2 * workspaces}
	defer transport.CloseIdleConnections()
	h.loads++
	for i, key := range h.keys {
		rate, n := of(i)
		if rate == 0 {
			continue
		}
		acks, err := loadgen.OpenAckLog(filepath.Join(h.dir, fmt.Sprintf("acks-%d-%d", h.loads, i)))
		if err != nil {
			return err
		}
		defer acks.Close()
		gen, err := loadgen.New(loadgen.Config{Seed: h.loads*workspaces + uint64(i), KeyedPercent: 100})
		if err != nil {
			return err
		}
		client, err := loadgen.NewClient(loadgen.ClientConfig{
			BaseURL: h.url + "/api/v1", APIKey: key, EventsPerRequest: min(rate, 100), EventsPerSecond: rate, Concurrency: 1,
			Transport: transport,
		}, gen, acks)
		if err != nil {
			return err
		}
		done.Go(func() {
			errs[i] = client.Run(ctx, n)
			if s := client.Stats(); errs[i] == nil && (s.Rejected > 0 || s.Unavailable > 0 || s.Failed > 1) {
				errs[i] = fmt.Errorf("workspace %d: %+v", i, s)
			}
		})
	}
	done.Wait()
	return errors.Join(errs[:]...)
}

// newWorkspace returns the key of a new workspace.
func (p *program) newWorkspace(ctx context.Context, name string) (string, error) {
	var made struct{ Data struct{ ID, Token string } }
	create := func(path, body string) error {
		status, answer, err := request(ctx, http.MethodPost, p.url+"/api/v1"+path, benchKey, body)
		if err != nil {
			return err
		}
		if status != http.StatusCreated {
			return fmt.Errorf("creating a workspace: %d %s", status, answer)
		}
		return json.Unmarshal(answer, &made)
	}
	if err := create("/workspaces", fmt.Sprintf(`{"name":%q}`, name)); err != nil {
		return "", err
	}
	err := create("/keys", fmt.Sprintf(`{"name":"first","scopes":["events:write","events:read"],"workspace_id":%q}`, made.Data.ID))
	return made.Data.Token, err
}

func request(ctx context.Context, method, url, key, body string) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return do(req)
}

// quantile in milliseconds.
func quantile(times []time.Duration, q float64) float64 {
	slices.Sort(times)
	return times[int(q*float64(len(times)-1))].Seconds() * 1000
}
