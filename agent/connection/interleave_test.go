package connection

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// lives are short stories of one socket, for all of whose ways to meet a sweep there is time.
var lives = []struct {
	name string
	live func(m *model, c *modelConn, pause pause) // before the sweep comes
	meet func(m *model, c *modelConn, pause pause)
}{
	{
		"a client begins", nil,
		func(m *model, c *modelConn, pause pause) { m.connect(c, pause) },
	},
	{
		"a client is established",
		func(m *model, c *modelConn, pause pause) { m.connect(c, pause) },
		func(m *model, c *modelConn, pause pause) { m.establish(c, pause) },
	},
	{
		"a client fails",
		func(m *model, c *modelConn, pause pause) { m.connect(c, pause) },
		func(m *model, c *modelConn, pause pause) { m.end(c, pause) },
	},
	{
		"a client ends",
		func(m *model, c *modelConn, pause pause) {
			m.connect(c, pause)
			m.establish(c, pause)
			m.move(c, 100, pause)
		},
		func(m *model, c *modelConn, pause pause) {
			m.move(c, 20, pause)
			m.end(c, pause)
		},
	},
	{
		"a server",
		nil,
		func(m *model, c *modelConn, pause pause) {
			m.accept(c, pause)
			m.move(c, 3, pause)
			m.end(c, pause)
		},
	},
	{
		"a client is established and ends",
		func(m *model, c *modelConn, pause pause) { m.connect(c, pause) },
		func(m *model, c *modelConn, pause pause) {
			m.establish(c, pause)
			m.end(c, pause)
		},
	},
	{
		"a socket that connects again",
		func(m *model, c *modelConn, pause pause) {
			m.connect(c, pause)
			m.establish(c, pause)
			m.move(c, 7, pause)
		},
		func(m *model, c *modelConn, pause pause) {
			m.end(c, pause)
			m.connect(c, pause)
		},
	},
}

// meet lets one life meet one sweep in one way, and tells what is wrong afterwards.
func meet(life int, mutation mutation, choose func(int) int) error {
	m := newModel(mutation, choose)
	c := new(modelConn)
	m.conns = append(m.conns, c)
	if before := lives[life].live; before != nil {
		before(m, c, func() {})
	}
	interleave(m.choose,
		newThread(func(pause pause) {
			// A thread that has done nothing yet need not wait.
			first := true
			lives[life].meet(m, c, func() {
				if !first {
					pause()
				}
				first = false
			})
		}),
		newThread(m.sweepAll))
	return m.atRest()
}

// atRest reads all, sweeps twice with nothing going on, which tells what lost events should have, and compares.
func (m *model) atRest() error {
	m.read()
	for range 2 {
		m.choose = func(options int) int { return (options - 1) / 2 } // nothing is lost or read wrongly
		m.sweepAll(func() {})
		m.read()
	}
	if m.got != m.want {
		return fmt.Errorf("sums are %+v, want %+v", m.got, m.want)
	}
	if live := m.want.connecting + m.want.open; m.tracker.Len() != live {
		return fmt.Errorf("%d connections are followed, %d are alive", m.tracker.Len(), live)
	}
	return nil
}

// TestEveryWay lets each short life meet a sweep in every order of their accesses, with every event lost or not.
func TestEveryWay(t *testing.T) {
	for i := range lives {
		t.Run(lives[i].name, func(t *testing.T) {
			ways := everyWay(func(choose func(int) int) bool {
				err := meet(i, faithful, choose)
				if err != nil {
					t.Error(err)
				}
				return err != nil
			})
			t.Logf("%d ways", ways)
			if ways < 100 {
				t.Errorf("only %d ways: the test proves nothing", ways)
			}
		})
	}
}

// TestModelSeesFaults puts one fault after the other into the model: at least one life has a way to show it. What they guard is in
// bpf/: where a line there goes, its fault here is what comes of it.
func TestModelSeesFaults(t *testing.T) {
	for mutation := faithful + 1; mutation < mutations; mutation++ {
		t.Run(mutationNames[mutation], func(t *testing.T) {
			var err error
			for i := range lives {
				everyWay(func(choose func(int) int) bool {
					err = meet(i, mutation, choose)
					return err != nil
				})
				if err != nil {
					t.Logf("%s: %v", lives[i].name, err)
					return
				}
			}
			t.Error("nobody sees it")
		})
	}
}

// TestAnyWay has many connections, sweeps and a reader in a random order, with random losses.
func TestAnyWay(t *testing.T) {
	for seed := range uint64(5000) {
		random := rand.New(rand.NewPCG(seed, 3))
		m := newModel(faithful, anyWay(random))
		loss := []float64{0, 0.1, 0.5, 0.9, 1}[seed%5]
		m.loses = func() bool { return random.Float64() < loss }
		var threads []thread
		for range 1 + random.IntN(40) {
			c := new(modelConn)
			m.conns = append(m.conns, c)
			threads = append(threads, newThread(func(pause pause) { m.randomLife(random, c, pause) }))
		}
		sweeps := 1 + random.IntN(5)
		threads = append(threads, newThread(func(pause pause) {
			for range sweeps {
				for range random.IntN(200) {
					pause()
				}
				m.sweepAll(pause)
			}
		}))
		checked := m.choose
		m.choose = func(options int) int {
			m.never(t)
			return checked(options)
		}
		interleave(m.choose, threads...)
		if err := m.atRest(); err != nil {
			t.Fatalf("with seed %d: %v", seed, err)
		}
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// randomLife is one socket's, which may connect more than once, and which may outlive the test.
func (m *model) randomLife(random *rand.Rand, c *modelConn, pause pause) {
	if random.IntN(3) == 0 {
		m.accept(c, pause)
		m.live(random, c, pause)
		return
	}
	for range 1 + random.IntN(3) {
		m.connect(c, pause)
		if random.IntN(4) == 0 {
			m.end(c, pause)
			continue
		}
		m.establish(c, pause)
		if !m.live(random, c, pause) {
			return
		}
	}
}

func (m *model) live(random *rand.Rand, c *modelConn, pause pause) (ended bool) {
	for range random.IntN(6) {
		m.move(c, random.Uint64N(1<<40), pause)
	}
	if random.IntN(5) == 0 {
		return false
	}
	m.end(c, pause)
	return true
}

// never is what must not be at any moment: more counted than happened.
func (m *model) never(t *testing.T) {
	g, w := &m.got, &m.want
	if g.attempts > w.attempts || g.established > w.established || g.failed > w.failed || g.closed > w.closed {
		t.Errorf("counted %+v of %+v", *g, *w)
	}
}
