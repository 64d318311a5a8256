package main

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"getimmutable.dev/immutable/internal/kafka"
	"getimmutable.dev/immutable/schemas"
)

type topicsCmd struct {
	Create topicsCreateCmd `cmd:"" help:"Create the topics that are missing, then check all."`
	Check  topicsCheckCmd  `cmd:"" help:"Say how the topics differ from what this version needs."`
}

type topicsFlags struct {
	kafkaFlags
	layoutFlags
	Data string `help:"Data folder of a running immutable up, which knows its partitions and replicas; instead of --kafka." placeholder:"DIR"`
}

type topicsCreateCmd struct{ topicsFlags }

// Run creates topics.
func (c *topicsCreateCmd) Run(ctx context.Context, p *process) error {
	return c.do(ctx, p, kafka.CreateTopics)
}

type topicsCheckCmd struct{ topicsFlags }

// Run changes nothing.
func (c *topicsCheckCmd) Run(ctx context.Context, p *process) error {
	return c.do(ctx, p, kafka.CheckTopics)
}

func (f *topicsFlags) do(
	ctx context.Context, p *process, what func(context.Context, *kgo.Client, []schemas.Topic) error,
) error {
	target := targetFlags{kafkaFlags: f.kafkaFlags, Data: f.Data}
	cfg, err := target.kafkaConfig()
	if err != nil {
		return err
	}
	var layout schemas.TopicLayout
	if f.Data != "" {
		up, err := target.upFile()
		if err != nil {
			return err
		}
		layout = up.Layout()
	} else if layout, err = f.layout(ctx, cfg.TopicPrefix, p.logger); err != nil {
		return err
	}
	cl, err := newClient(cfg, p.logger)
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	topics := schemas.Topics(layout)
	if err := what(ctx, cl, topics); err != nil {
		return err
	}
	fmt.Fprintf(p.stdout, "%d topics are as they must be\n", len(topics))
	return nil
}
