package meshreceiver

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/collector/pdata/pcommon"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// TestArenaFits fails when pdata lays out its maps otherwise: then records are made by its own functions, which costs a third more. Look at
// what changed, and teach arena.go.
func TestArenaFits(t *testing.T) {
	if !layout.ok {
		t.Fatal("pdata's maps are not laid out as arena.go knows them")
	}
}

// withoutArena makes the arena do without its knowledge.
func withoutArena(t *testing.T) {
	known := layout
	layout.ok = false
	t.Cleanup(func() { layout = known })
}

// TestArenaIsPdata holds what an arena makes against what pdata makes.
func TestArenaIsPdata(t *testing.T) {
	const maps, attributes = 3 * arenaRecords, 9
	var a arena
	want, got := pcommon.NewSlice(), pcommon.NewSlice()
	for i := range maps {
		w, g := want.AppendEmpty().SetEmptyMap(), got.AppendEmpty().SetEmptyMap()
		a.begin(g, attributes)
		// More than it has room for, of each kind: what follows in the arena is the next map's.
		for k := range 2 * attributes {
			text, number := fmt.Sprintf("%d of %d", k, i), int64(i*k)
			if k == 0 {
				text, number = "", math.MinInt64
			}
			w.PutStr(fmt.Sprint("s", k), text)
			w.PutInt(fmt.Sprint("i", k), number)
			a.putStr(g, fmt.Sprint("s", k), text)
			a.putInt(g, fmt.Sprint("i", k), number)
		}
	}
	runtime.GC() // nothing is found that is not there
	if fmt.Sprint(got.AsRaw()) != fmt.Sprint(want.AsRaw()) {
		t.Errorf("\ngot  %v\nwant %v", got.AsRaw(), want.AsRaw())
	}
	// Others may do with it what they do with any map.
	one := got.At(1).Map()
	one.PutStr("s1", "changed")
	one.PutInt("s2", 5)
	one.Remove("i1")
	copied := pcommon.NewMap()
	one.CopyTo(copied)
	if !copied.Equal(one) || copied.Len() != 4*attributes-1 {
		t.Errorf("a copy is %v, want %v", copied.AsRaw(), one.AsRaw())
	}
	if fmt.Sprint(got.At(2).Map().AsRaw()) != fmt.Sprint(want.At(2).Map().AsRaw()) || fmt.Sprint(got.At(0).Map().AsRaw()) != fmt.Sprint(want.At(0).Map().AsRaw()) {
		t.Error("a change of one map is seen in another")
	}
}

func TestArenaText(t *testing.T) {
	var a arena
	var texts []string
	for i := range 10 * arenaRecords {
		texts = append(texts, a.text(10, func(b []byte) []byte { return append(b, strings.Repeat(fmt.Sprint(i%10), i%11)...) }))
	}
	for i, text := range texts {
		if want := strings.Repeat(fmt.Sprint(i%10), i%11); text != want {
			t.Fatalf("text %d is %q, want %q", i, text, want)
		}
	}
}

// TestGoldenWithoutArena gives the same records where the arena does not fit.
func TestGoldenWithoutArena(t *testing.T) {
	withoutArena(t)
	TestGolden(t)
}

// TestRecordAllocations bounds what one record allocates, in batches as they come.
func TestRecordAllocations(t *testing.T) {
	settings := testSettings()
	const records = 512
	for _, name := range []string{"ok_pair", "mesh"} {
		batch := [][]enrich.Record{slices.Repeat(load(t, name)[:1], records)}
		for _, test := range []struct {
			name string
			make func()
			most float64
		}{
			{"log record", func() { newLogs(&settings, batch) }, 1.5},
			// Itself, its list of events, and three of those.
			{"span", func() { newTraces(&settings, batch) }, 5.5},
		} {
			test.make() // the texts that are kept
			if got := testing.AllocsPerRun(20, test.make) / records; got > test.most {
				t.Errorf("%s of %s: %.2f allocations, want at most %.1f", test.name, name, got, test.most)
			}
		}
	}
}
