package accesslog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

func TestGolden(t *testing.T) {
	fixture.Cases(t, "records.yaml", func(t *testing.T, dir string) {
		var lines []byte
		for _, r := range fixture.Load(t, filepath.Join(dir, "records.yaml")).Records {
			if r.Event.Kind == connection.Close {
				lines = AppendLine(lines, fixture.Boot, &r)
			}
		}
		fixture.Golden(t, filepath.Join(dir, "expected.jsonl"), lines)
		for line := range bytes.Lines(lines) {
			parse(t, line)
		}
	})
}

// parse reads a line as whoever receives it would, and returns its keys in their order with their values.
func parse(t *testing.T, line []byte) (keys []string, values map[string]any) {
	t.Helper()
	if !bytes.HasSuffix(line, []byte("}\n")) || bytes.IndexByte(line, '\n') != len(line)-1 || !utf8.Valid(line) {
		t.Errorf("not one line of UTF-8: %q", line)
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.UseNumber()
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		t.Fatalf("no object: %v, %v: %s", start, err, line)
	}
	values = make(map[string]any)
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		value, err := decoder.Token()
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if slices.Contains(keys, key.(string)) {
			t.Errorf("the key %s is there twice: %s", key, line)
		}
		keys = append(keys, key.(string))
		values[key.(string)] = value
	}
	if !json.Valid(line) {
		t.Errorf("not valid JSON: %s", line)
	}
	return keys, values
}

// contract is section 6 of the design.
var contract = strings.Fields(`
	timestamp event.name log.record.uid trace_id span_id network.transport network.type
	network.local.address network.local.port network.peer.address network.peer.port client.address client.port server.address server.port
	sidelight.role sidelight.reason error.type sidelight.adopted sidelight.duration_ns sidelight.connect_ns sidelight.decision_ns
	sidelight.first_sent_ns sidelight.first_received_ns
	sidelight.sent_bytes sidelight.received_bytes sidelight.retransmits sidelight.syn_retransmits sidelight.rtt_us sidelight.min_rtt_us sidelight.sampling_probability
	process.pid process.executable.name process.linux.cgroup container.id k8s.pod.uid
	sidelight.original_destination sidelight.service sidelight.backend sidelight.verdict sidelight.policy sidelight.policy.rule
	sidelight.config_generation sidelight.dry_run.verdict sidelight.dry_run.policy sidelight.dry_run.policy.rule
	sidelight.limit sidelight.limit.value sidelight.refused_by_mesh`)

func TestKeysAreInTheOrderOfTheContract(t *testing.T) {
	full := fixture.Load(t, "testdata/plain/records.yaml").Records[1]
	full.Event.Reason, full.Sampling = connection.ResetByPeer, connection.SampledAt(0)
	full.Event.Totals.FirstSentNS, full.Event.Totals.FirstReceivedNS = full.Event.EstablishedNS+1, full.Event.EstablishedNS+2
	full.Event.Flags |= connection.Decided | connection.RefusedHere
	full.Event.Decision = connection.Decision{
		Original: full.Event.Peer, Verdict: connection.VerdictAllow, DryVerdict: connection.VerdictDeny, Limit: 1, DecisionNS: 1, Generation: 1,
	}
	full.Identity.Decision = &enrich.Decision{
		Service: &enrich.Service{Name: "s", Namespace: "n"}, Endpoint: "n/e", Rule: &enrich.Rule{Policy: "n/p"}, DryRule: &enrich.Rule{Policy: "n/d"},
		Limit: "service n/s",
	}
	keys, _ := parse(t, AppendLine(nil, fixture.Boot, &full))
	want := slices.DeleteFunc(slices.Clone(contract), func(key string) bool { return key == "sidelight.adopted" })
	if !slices.Equal(keys, want) {
		t.Errorf("got  %v\nwant %v", keys, want)
	}
	for _, name := range []string{"plain", "mesh"} {
		for _, r := range fixture.Load(t, "testdata/"+name+"/records.yaml").Finished {
			next := 0
			keys, _ := parse(t, AppendLine(nil, fixture.Boot, &r))
			for _, key := range keys {
				i := slices.Index(contract, key)
				if i < next {
					t.Errorf("%s is out of order in %v", key, keys)
				}
				next = i + 1
			}
		}
	}
}

func TestKeysAreThoseOfTheTable(t *testing.T) {
	table, err := metadata.Read("../meshreceiver/metadata.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range table.LogLine {
		want = append(want, f.Name)
	}
	for _, a := range table.LogAttributes {
		if !slices.Contains(want, a.Name) {
			want = append(want, a.Name)
		}
	}
	if !slices.Equal(contract, want) {
		t.Errorf("the line has %v\nthe table has %v", contract, want)
	}
}

func TestHostileStringsStayStrings(t *testing.T) {
	hostile := []string{
		"", `"`, `\`, `\"`, `","x":"`, "\n", "\r\n", "\t\b\f\v", "\x00", "\x1b[2J", "\x7f", "</script>", "\u2028\u2029", "\uFEFF", "\u009b",
		"😀", "e\u0301", strings.Repeat("a", 5000), string(utf8.RuneError), "\U0010FFFF",
	}
	for c := range 0x20 {
		hostile = append(hostile, fmt.Sprintf("a%cb", c))
	}
	for _, s := range hostile {
		if got := roundTrip(t, s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func TestBytesThatAreNoUTF8BecomeReplacementCharacters(t *testing.T) {
	for s, want := range map[string]string{
		"\xff":             "\uFFFD",
		"a\xc3":            "a\uFFFD",                  // a character that was cut
		"\xed\xa0\x80":     "\uFFFD\uFFFD\uFFFD",       // half of a surrogate pair
		"\xc0\xaf":         "\uFFFD\uFFFD",             // a slash in too many bytes
		"\xf5\x80\x80\x80": "\uFFFD\uFFFD\uFFFD\uFFFD", // beyond Unicode
		"ok\xfe\"ok":       "ok\uFFFD\"ok",
	} {
		if got := roundTrip(t, s); got != want {
			t.Errorf("%q became %q, want %q", s, got, want)
		}
	}
}

// roundTrip gives a name to everything that has one in a line, and reads it back.
func roundTrip(t *testing.T, name string) string {
	t.Helper()
	record := fixture.Load(t, "testdata/hostile/records.yaml").Records[0]
	record.Identity.Process = &enrich.Process{PID: 1, Executable: name + "."} // an empty one is absent
	record.Identity.Local = &enrich.Workload{Name: name, Cgroup: "/" + name}
	record.Event.Flags |= connection.Decided
	record.Identity.Decision = &enrich.Decision{Service: &enrich.Service{Name: name, Namespace: name}}
	line := AppendLine(nil, fixture.Boot, &record)
	_, values := parse(t, line)
	var standard map[string]any
	if err := json.Unmarshal(line, &standard); err != nil {
		t.Fatalf("%v: %q", err, line)
	}
	if got := values["process.pid"].(json.Number); got != "1" {
		t.Errorf("%q changed process.pid to %v", name, got)
	}
	executable := values["process.executable.name"].(string)
	cgroup := values["process.linux.cgroup"].(string)
	if standard["process.executable.name"] != executable || "0::/"+strings.TrimSuffix(executable, ".") != cgroup {
		t.Errorf("%q became %q and %q", name, executable, cgroup)
	}
	if got := values["sidelight.service"]; got != cgroup[len("0::/"):]+"/"+cgroup[len("0::/"):] {
		t.Errorf("%q became the service %q", name, got)
	}
	return strings.TrimSuffix(executable, ".")
}

func TestAppendLineAppends(t *testing.T) {
	record := fixture.Load(t, "testdata/plain/records.yaml").Records[1]
	one := AppendLine(nil, fixture.Boot, &record)
	two := AppendLine(slices.Clone(one), fixture.Boot, &record)
	if !bytes.Equal(two, append(slices.Clone(one), one...)) {
		t.Errorf("two lines are not one line twice: %s", two)
	}
}
