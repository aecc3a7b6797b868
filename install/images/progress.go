package images

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// sayEvery is how often a build that runs says how far it is.
const sayEvery = 10 * time.Second

// run runs go build -v and says how far it is. What go build has to say about
// mistakes is the error.
func (b Build) run(command *exec.Cmd, what string) error {
	output, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	p := progress{out: b.Progress, what: what, began: time.Now()}
	for lines := bufio.NewScanner(output); lines.Scan(); {
		p.line(lines.Text())
	}
	if err := command.Wait(); err != nil {
		return fmt.Errorf("%w\n%s", err, strings.Join(p.said, "\n"))
	}
	p.say(time.Now())
	return nil
}

// progress counts the packages of a go build -v.
type progress struct {
	out         io.Writer
	what        string
	began, last time.Time
	compiled    int
	said        []string // everything that is not the name of a package
}

func (p *progress) line(text string) {
	if strings.ContainsAny(text, " \t#:") {
		p.said = append(p.said, text)
		return
	}
	p.compiled++
	if now := time.Now(); now.Sub(p.began) >= sayEvery && now.Sub(p.last) >= sayEvery {
		p.say(now)
	}
}

func (p *progress) say(now time.Time) {
	p.last = now
	if p.out != nil && p.compiled > 0 {
		fmt.Fprintf(p.out, "images: %s: %d packages compiled, %.0f s\n", p.what, p.compiled, now.Sub(p.began).Seconds())
	}
}
