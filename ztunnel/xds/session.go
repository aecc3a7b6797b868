package xds

import (
	"context"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// maxMessage is the largest response that is read: a whole mesh in one.
const maxMessage = 200 << 20

// session is one stream, from its opening to its end. heard reports whether
// the server has answered anything. Requests are sent, and responses applied,
// by the caller's goroutine only; another one receives.
func (c *Client) session(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var receiver sync.WaitGroup
	defer receiver.Wait()
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(c.cfg.Conn).
		DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return false, err
	}
	defer c.setConnected(false)
	for _, t := range c.cfg.Types {
		if err := stream.Send(c.initial(c.types[t.URL])); err != nil {
			return false, received(stream, err)
		}
	}

	responses := make(chan *discoveryv3.DeltaDiscoveryResponse)
	ended := make(chan error, 1)
	receiver.Go(func() {
		for {
			res, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case responses <- res:
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		select {
		case res := <-responses:
			if !heard {
				heard = true
				c.setConnected(true)
				c.cfg.Log.Info("xds stream is up")
			}
			if err := stream.Send(c.handle(res)); err != nil {
				return heard, end(responses, ended)
			}
		case <-c.wake:
			if err := c.sendChanges(stream); err != nil {
				return heard, end(responses, ended)
			}
		case err := <-ended:
			return heard, err
		case <-ctx.Done():
			return heard, context.Cause(ctx)
		}
	}
}

// end returns why a stream on which Send failed has ended. What it had still
// received is lost, and will be sent again.
func end(responses <-chan *discoveryv3.DeltaDiscoveryResponse, ended <-chan error) error {
	for {
		select {
		case <-responses:
		case err := <-ended:
			return err
		}
	}
}

type adsStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

func (c *Client) sendChanges(stream adsStream) error {
	for _, t := range c.cfg.Types {
		if req := c.changes(c.types[t.URL]); req != nil {
			if err := stream.Send(req); err != nil {
				return err
			}
		}
	}
	return nil
}

// received returns why a stream on which Send failed has ended: Send itself
// says io.EOF only.
func received(stream adsStream, sendErr error) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return sendErr
}

func (c *Client) setConnected(up bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Connected = up
}
