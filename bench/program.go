package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"getimmutable.dev/immutable/internal/loadgen"
)

const (
	benchKey     = "imk_sk_bench_of_the_whole_program"
	startTimeout = time.Minute
	// freshSamples is how many events are followed from their 202 until they can be read.
	freshSamples = 200
)

// program is `immutable up` as a child process.
type program struct {
	cmd  *exec.Cmd
	url  string
	took time.Duration // from start to ready
}

// wholeProgram measures what only `up` can show: memory, idle and under load, and how long an accepted event takes to be
// readable.
func wholeProgram(ctx context.Context, table io.Writer, root, dir string, events int) error {
	binary, err := build(ctx, root, dir)
	if err != nil {
		return err
	}
	data := filepath.Join(dir, "data")
	p, err := start(ctx, root, binary, data)
	if err != nil {
		return err
	}
	defer p.stop()
	idle, err := p.resident()
	if err != nil {
		return err
	}
	row(table, "first start", p.took.Round(time.Millisecond).String(), "", "", "")
	row(table, "resident, idle, without ClickHouse", mib(idle), "", "", "< 150 MB")

	fresh, err := p.freshness(ctx)
	if err != nil {
		return err
	}
	row(table, "202 to readable, idle: p50, p99", quantiles(fresh), "", "", "< 2 s")

	began := time.Now()
	peak, err := p.load(ctx, dir, events)
	if err != nil {
		return err
	}
	rate := float64(events) / time.Since(began).Seconds()
	row(table, fmt.Sprintf("load of %d events, generator on the same cores", events),
		fmt.Sprintf("%.0f events/s accepted", rate), "", "", "")
	for i, p := range peak {
		row(table, fmt.Sprintf("resident, part %d of %d of the load, greatest", i+1, len(peak)), mib(p), "", "", "flat")
	}
	if err := storage(ctx, table, data, events); err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	again, err := start(ctx, root, binary, data)
	if err != nil {
		return err
	}
	row(table, "restart after the load", again.took.Round(time.Millisecond).String(), "", "", "< 5 s")
	return again.stop()
}

// build returns the path of a binary as it is shipped.
func build(ctx context.Context, root, dir string) (string, error) {
	binary := filepath.Join(dir, "immutable")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", binary, "./cmd/immutable")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building: %w\n%s", err, out)
	}
	return binary, nil
}

func start(ctx context.Context, root, binary, data string) (*program, error) {
	p := &program{cmd: exec.CommandContext(ctx, binary, "up", "--addr", "127.0.0.1:0", "--data", data)}
	p.cmd.Dir = root
	p.cmd.Env = append(os.Environ(), "IMMUTABLE_API_KEY="+benchKey)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := new(bytes.Buffer)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	upFile := filepath.Join(data, "up.json")
	if err := os.Remove(upFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if text, err := os.ReadFile(upFile); err == nil {
			var up struct{ HTTP string }
			if json.Unmarshal(text, &up) == nil && ready(ctx, up.HTTP) {
				p.url, p.took = up.HTTP, time.Since(began)
				return p, nil
			}
		}
		select {
		case <-ctx.Done():
			err := p.stop()
			return nil, errors.Join(fmt.Errorf("it did not become ready: %w\n%s", ctx.Err(), log.Bytes()), err)
		case <-tick.C:
		}
	}
}

func ready(ctx context.Context, url string) bool {
	status, _, err := get(ctx, url+"/readyz")
	return err == nil && status == http.StatusOK
}

func get(ctx context.Context, url string) (status int, body []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+benchKey)
	return do(req)
}

func do(req *http.Request) (status int, body []byte, err error) {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func (p *program) stop() error {
	if p.cmd.ProcessState != nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.cmd.Wait()
}

// resident returns the bytes of the process's memory that are in RAM; the embedded ClickHouse is another process.
func (p *program) resident() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmRSS in /proc")
}

// load posts events in batches of 100 and returns the greatest resident memory in each fourth of the load.
func (p *program) load(ctx context.Context, dir string, events int) ([]int64, error) {
	acks, err := loadgen.OpenAckLog(filepath.Join(dir, "acks"))
	if err != nil {
		return nil, err
	}
	gen, err := loadgen.New(loadgen.Config{Seed: 1, KeyedPercent: 100})
	if err != nil {
		return nil, err
	}
	client, err := loadgen.NewClient(loadgen.ClientConfig{BaseURL: p.url + "/api/v1", APIKey: benchKey}, gen, acks)
	if err != nil {
		return nil, err
	}
	peak := make([]int64, 4)
	done := make(chan error, 1)
	go func() { done <- client.Run(ctx, events) }()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if stats := client.Stats(); err == nil && stats.Acknowledged() != int64(events) {
				err = fmt.Errorf("%d of %d events acknowledged: %+v", stats.Acknowledged(), events, stats)
			}
			return peak, err
		case <-tick.C:
		}
		now, err := p.resident()
		if err != nil {
			return nil, err
		}
		part := min(len(peak)-1, int(client.Stats().Acknowledged())*len(peak)/events)
		peak[part] = max(peak[part], now)
	}
}

// freshness posts events one at a time and returns how long after its 202 each could be read.
func (p *program) freshness(ctx context.Context) ([]time.Duration, error) {
	times := make([]time.Duration, 0, freshSamples)
	for i := range freshSamples {
		body := fmt.Sprintf(`{"actor_id":"bench","action":"bench.posted","resource":"bench","resource_id":"%d"}`, i)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+"/api/v1/events", strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+benchKey)
		req.Header.Set("Content-Type", "application/json")
		status, text, err := do(req)
		if err != nil {
			return nil, err
		}
		if status != http.StatusAccepted {
			return nil, fmt.Errorf("posting an event: %d %s", status, text)
		}
		began := time.Now()
		var answer struct{ ID string }
		if err := json.Unmarshal(text, &answer); err != nil {
			return nil, err
		}
		for status = 0; status != http.StatusOK; {
			if status, text, err = get(ctx, p.url+"/api/v1/events/"+answer.ID); err != nil {
				return nil, err
			}
			if status != http.StatusOK && status != http.StatusNotFound {
				return nil, fmt.Errorf("reading an event: %d %s", status, text)
			}
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}

func quantiles(times []time.Duration) string {
	slices.Sort(times)
	at := func(q float64) time.Duration { return times[int(q*float64(len(times)-1))].Round(time.Millisecond) }
	return fmt.Sprintf("%s, %s", at(0.5), at(0.99))
}

func mib(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/1e6) }
