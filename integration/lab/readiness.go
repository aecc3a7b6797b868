package lab

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// eagerPeriod is how often a container that is not ready is probed, where its
// own period is longer: nobody wants to wait ten seconds for a demo.
const eagerPeriod = 50 * time.Millisecond

// probe asks the container whether it is ready until ctx ends, from the node,
// so that the pod sees the address of its gateway.
func (k *keeper) probe(ctx context.Context, c corev1.Container) {
	probe := c.ReadinessProbe
	if probe == nil {
		return
	}
	ask := k.probeOf(c, probe)
	if ask == nil {
		k.report(func(p *pod) { p.container(c.Name).ready = true })
		return
	}
	period := seconds(probe.PeriodSeconds, 10)
	state := readiness{successes: cmp.Or(probe.SuccessThreshold, 1), failures: cmp.Or(probe.FailureThreshold, 3)}
	last := ""
	timer := time.NewTimer(time.Duration(probe.InitialDelaySeconds) * time.Second)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		attempt, cancel := context.WithTimeout(ctx, seconds(probe.TimeoutSeconds, 1))
		err := ask(attempt)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if state.note(err == nil) {
			ready := state.ready
			k.report(func(p *pod) { p.container(c.Name).ready = ready })
		}
		if !state.ready {
			if err != nil && err.Error() != last {
				last = err.Error()
				k.reportProbe(c.Name, err)
			}
			timer.Reset(min(period, eagerPeriod))
			continue
		}
		timer.Reset(period)
	}
}

// reportProbe says in the pod's status why it is not ready.
func (k *keeper) reportProbe(container string, err error) {
	message := fmt.Sprintf("container %s: readiness: %s", container, err)
	k.c.post(func() {
		if k.pod.message != message {
			k.pod.message, k.pod.dirty = message, true
		}
	})
}

// readiness turns answers into a state.
type readiness struct {
	successes, failures int32 // in a row, to change
	ready               bool
	row                 int32
}

// note takes an answer and says whether the state has changed.
func (r *readiness) note(ok bool) bool {
	if ok == r.ready {
		r.row = 0
		return false
	}
	r.row++
	need := r.successes
	if r.ready {
		need = r.failures
	}
	if r.row < need {
		return false
	}
	r.ready, r.row = ok, 0
	return true
}

func seconds(n, otherwise int32) time.Duration {
	return time.Duration(cmp.Or(n, otherwise)) * time.Second
}

// probeOf returns what to ask, nil when the probe is of a kind that the lab does
// not know (a warning has said so).
func (k *keeper) probeOf(c corev1.Container, probe *corev1.Probe) func(context.Context) error {
	dial := func(ctx context.Context, port intstr.IntOrString) (net.Conn, error) {
		number := port.IntValue()
		if port.Type == intstr.String && number == 0 {
			number = int(namedPort([]corev1.Container{c}, port.StrVal, corev1.ProtocolTCP))
		}
		if number == 0 {
			return nil, fmt.Errorf("no port %s", port.String())
		}
		return k.pod.node.dial(ctx, netip.AddrPortFrom(k.pod.address, uint16(number)))
	}
	switch {
	case probe.TCPSocket != nil:
		return func(ctx context.Context) error {
			conn, err := dial(ctx, probe.TCPSocket.Port)
			if err != nil {
				return err
			}
			return conn.Close()
		}
	case probe.HTTPGet != nil:
		get := probe.HTTPGet
		client := &http.Client{
			Transport: &http.Transport{
				DisableKeepAlives: true,
				TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a kubelet does not verify either
				DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, get.Port) },
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		return func(ctx context.Context) error { return httpGet(ctx, client, get, k.pod.address) }
	}
	return nil
}

func httpGet(ctx context.Context, client *http.Client, get *corev1.HTTPGetAction, address netip.Addr) error {
	scheme := strings.ToLower(cmp.Or(string(get.Scheme), "http"))
	target := scheme + "://" + net.JoinHostPort(address.String(), strconv.Itoa(max(get.Port.IntValue(), 1))) + "/" + strings.TrimPrefix(get.Path, "/")
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", "kube-probe/lab")
	for _, header := range get.HTTPHeaders {
		if strings.EqualFold(header.Name, "host") {
			request.Host = header.Value
		}
		request.Header.Set(header.Name, header.Value)
	}
	response, err := client.Do(request)
	if err != nil {
		if failed, ok := errors.AsType[*url.Error](err); ok {
			return failed.Err // without the method and URL
		}
		return err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 10<<10)
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("GET %s: status %d", get.Path, response.StatusCode)
	}
	return nil
}
