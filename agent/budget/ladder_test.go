package budget

import (
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	everything = Telling{Spans: true, Logs: true, AllEvents: true, AnyEvents: true}
	halfCPU    = Limits{CPU: 0.5}
	quick      = Pace{Down: 2, Up: 3, MostUp: 12}
)

func TestDetails(t *testing.T) {
	for _, c := range []struct {
		name string
		of   Telling
		want []Detail
	}{
		{"everything", everything, []Detail{{Full, 0}, {SpansOff, 0}, {LogSampling, 3}, {LogSampling, 6}, {ClosesOnly, 6}, {CountersOnly, 6}}},
		{"no spans", Telling{Logs: true, AllEvents: true, AnyEvents: true}, []Detail{{Full, 0}, {LogSampling, 3}, {LogSampling, 6}, {ClosesOnly, 6}, {CountersOnly, 6}}},
		{"metrics only", Telling{AllEvents: true, AnyEvents: true}, []Detail{{Full, 0}, {ClosesOnly, 0}, {CountersOnly, 0}}},
		{"closes only", Telling{Logs: true, AnyEvents: true}, []Detail{{Full, 0}, {LogSampling, 3}, {LogSampling, 6}, {CountersOnly, 6}}},
		{"no events", Telling{Spans: true, Logs: true}, []Detail{{Full, 0}}},
	} {
		if got := Details(c.of); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// readings are what the letters of a sequence stand for, with a limit of 0.5: over, near (neither over nor clear), clear, and none.
var readings = map[rune]Reading{'o': {CPU: 0.6}, 'n': {CPU: 0.4}, 'c': {CPU: 0.25}, '-': {CPU: 0.01}}

// TestLadder plays sequences of readings. Below each reading stands the place after it.
func TestLadder(t *testing.T) {
	for _, c := range []struct{ name, readings, places string }{
		{"rest", "----------", "0000000000"},
		{"one is not enough", "o-o-ono-", "00000000"},
		{"two are", "oo", "01"},
		{"to the bottom and no further", "oooooooooooooo", "01122334455555"},
		{"settles where it is near", "oooonnnnnnnnnn", "01122222222222"},
		{"up when it is clear", "oooo-----------", "011222111000000"},
		{"near begins anew", "oocncnccnccc", "011111111110"},
		{"over begins anew", "oocco-oocccccc", "01111112221110"},
		// The step up is taken back at once: the next wants 6 clear ones, then 12, and no more than that.
		{
			"backs off", "oo" + "cccoo" + "ccccccoo" + "ccccccccccccoo" + "ccccccccccccoo" + "ccccccccccc",
			"01" + "11001" + "11111001" + "11111111111001" + "11111111111001" + "11111111111",
		},
		// The load goes away: what costs a twentieth of what it did when the step failed needs no patience.
		{"load ends", "oo" + "cccoo" + "ccccccoo" + "ccc---", "01" + "11001" + "11111001" + "111110"},
		{"load ends, three in a row", "oo" + "cccoo" + "ccccccoo" + "n---", "01" + "11001" + "11111001" + "1110"},
		// A step up that held is right: a new load later is not held against it.
		{
			"held", "oo" + "ccc" + "nnnnnnnnnnnn" + "oo" + "ccc", "01" + "110" + "000000000000" + "01" + "110",
		},
		// Two steps up in a row: the first was right.
		{"forgives", "oooo" + "cccoo" + "cccccc" + "ccccccoo" + "cccccc", "0112" + "22112" + "222221" + "11111001" + "111110"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := NewLadder(Details(everything), halfCPU, quick)
			if len(c.readings) != len(c.places) {
				t.Fatalf("%d readings and %d places", len(c.readings), len(c.places))
			}
			var got []byte
			for _, letter := range c.readings {
				before := l.at
				step, stepped := l.Observe(readings[letter])
				if stepped != (l.at != before) || stepped && (step.From != l.details[before] || step.To != l.At() || step.Down() != (l.at > before)) {
					t.Errorf("after %d readings: step %+v (%v) from place %d to %d", len(got), step, stepped, before, l.at)
				}
				got = append(got, byte('0'+l.at))
			}
			if string(got) != c.places {
				t.Errorf("\n     %s\ngot  %s\nwant %s", c.readings, got, c.places)
			}
		})
	}
}

func TestLadderLimits(t *testing.T) {
	const most = 100 << 20
	for _, c := range []struct {
		name   string
		limits Limits
		read   Reading
		over   Cause
		clear  bool
	}{
		{"nothing is limited", Limits{}, Reading{CPU: 1, Memory: 1 << 40}, Room, true},
		{"at the limit", Limits{0.5, most}, Reading{0.5, most}, Room, false},
		{"CPU", Limits{0.5, most}, Reading{0.51, most}, CPU, false},
		{"memory", Limits{0.5, most}, Reading{0.5, most + 1}, Memory, false},
		{"both", Limits{0.5, most}, Reading{0.6, most + 1}, CPU, false},
		{"CPU is clear, memory near", Limits{0.5, most}, Reading{0.1, 86 << 20}, Room, false},
		{"memory is clear, CPU near", Limits{0.5, most}, Reading{0.3, 84 << 20}, Room, false},
		{"both are clear", Limits{0.5, most}, Reading{0.29, 84 << 20}, Room, true},
		{"CPU is off", Limits{0, most}, Reading{1, 84 << 20}, Room, true},
		{"memory is off", Limits{0.5, 0}, Reading{0.1, 1 << 40}, Room, true},
	} {
		if got := c.limits.over(c.read); got != c.over {
			t.Errorf("%s: over: %v, want %v", c.name, got, c.over)
		}
		if got := c.limits.clear(c.read); got != c.clear {
			t.Errorf("%s: clear: %v, want %v", c.name, got, c.clear)
		}
	}
	l := NewLadder(Details(everything), Limits{Memory: most}, quick)
	l.Observe(Reading{Memory: most + 1})
	if step, stepped := l.Observe(Reading{Memory: most + 2}); !stepped || step.Cause != Memory || step.Reading.Memory != most+2 || step.Limits.Memory != most {
		t.Errorf("step %+v, %v", step, stepped)
	}
}

// TestLadderSettles runs ladders in a loop with loads that cost less on each place, and noise. Under a load that does not change they must
// come to the same place, make fewer and fewer steps, and climb to the top when it ends.
func TestLadderSettles(t *testing.T) {
	costs := []float64{1, 0.7, 0.45, 0.4, 0.3, 0.1} // of each place, of the load's at the top
	pace := DefaultPace
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		load := 0.1 * float64(uint64(1)<<r.IntN(10)) // up to 50 times the limit
		if seed%2 == 0 {
			load = 0.2 + 2*r.Float64()
		}
		l := NewLadder(Details(everything), Limits{CPU: 0.5}, pace)
		run := func(load float64, readings int) (steps, over int) {
			for range readings {
				cpu := load * costs[l.at] * (0.95 + 0.1*r.Float64())
				if _, stepped := l.Observe(Reading{CPU: cpu}); stepped {
					steps++
				}
				if cpu > 0.5*1.06 { // by more than the noise
					over++
				}
			}
			return steps, over
		}
		const day = 24 * 360
		run(load, 100) // on the way down
		for range 3 {
			// A try an hour once the patience is at its most, each of two readings; on the way there it doubles. Where a place costs just
			// the limit, noise makes some more.
			if steps, over := run(load, day); steps > 2*24+40 || over > 4*24+40 && load*costs[5] < 0.45 {
				t.Errorf("seed %d: load %.2f: %d steps and %d readings over the limit in a day", seed, load, steps, over)
			}
		}
		if run(0.01, 6*len(costs)); l.at != 0 {
			t.Errorf("seed %d: load %.2f: at place %d %d readings after its end", seed, load, l.at, 6*len(costs))
		}
	}
}
