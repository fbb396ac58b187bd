package dashboards

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/ptrace"

	"github.com/sidelight-mesh/sidelight/collector/otlptest"
)

// jaeger is a running Jaeger, that of these addresses.
type jaeger struct{ query, grpc, http string }

// most is how many traces it keeps.
const most = 100_000

const jaegerConfig = `
extensions:
  jaeger_storage: {backends: {kept: {memory: {max_traces: %d}}}}
  jaeger_query: {storage: {traces: kept}, enable_tracing: false, http: {endpoint: "%s"}, grpc: {endpoint: "%s"}}
receivers: {otlp: {protocols: {grpc: {endpoint: "%s"}, http: {endpoint: "%s"}}}}
exporters: {jaeger_storage_exporter: {trace_storage: kept}}
service:
  extensions: [jaeger_storage, jaeger_query]
  telemetry: {metrics: {level: none}}
  pipelines: {traces: {receivers: [otlp], exporters: [jaeger_storage_exporter]}}
`

// startJaeger starts what "make jaeger" builds.
func startJaeger(t *testing.T) jaeger {
	t.Helper()
	program := builtBackend(t, "jaeger", "jaeger", "JAEGER", "github.com/jaegertracing/jaeger")
	j := jaeger{query: otlptest.FreeAddress(t), grpc: otlptest.FreeAddress(t), http: otlptest.FreeAddress(t)}
	queryGRPC := otlptest.FreeAddress(t) // nobody asks it there, and without an address of its own it would take that of any Jaeger
	pid := startBackend(t, "http://"+j.query+"/api/services", program,
		"--config", "yaml:"+fmt.Sprintf(jaegerConfig, most, j.query, queryGRPC, j.grpc, j.http))
	// The receivers come last. Nothing else is to listen, at no address that others reach.
	want := []string{j.query, j.grpc, j.http, queryGRPC}
	slices.Sort(want)
	for deadline := time.Now().Add(backendPatience); ; time.Sleep(20 * time.Millisecond) {
		if listens := listensAt(t, pid); slices.Equal(listens, want) {
			return j
		} else if time.Now().After(deadline) {
			t.Fatalf("Jaeger listens at %v, want %v", listens, want)
		}
	}
}

// listensAt returns where a process listens by TCP; what is not IPv4 is as the kernel spells it.
func listensAt(t *testing.T, pid int) []string {
	t.Helper()
	sockets := make(map[string]bool)
	directory := fmt.Sprintf("/proc/%d/fd/", pid)
	files, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if link, err := os.Readlink(directory + f.Name()); err == nil && strings.HasPrefix(link, "socket:[") {
			sockets[strings.Trim(link, "socket:[]")] = true
		}
	}
	var all []string
	for _, table := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			const listening, inode = "0A", 9
			fields := strings.Fields(line)
			if len(fields) <= inode || fields[3] != listening || !sockets[fields[inode]] {
				continue
			}
			address := fields[1]
			if host, port, _ := strings.Cut(address, ":"); len(host) == 8 {
				h, err := hex.DecodeString(host)
				p, errPort := strconv.ParseUint(port, 16, 16)
				if err != nil || errPort != nil {
					t.Fatalf("/proc/net/tcp has %s", address)
				}
				var b [4]byte // in the host's order
				binary.NativeEndian.PutUint32(b[:], binary.BigEndian.Uint32(h))
				address = netip.AddrPortFrom(netip.AddrFrom4(b), uint16(p)).String()
			}
			all = append(all, address)
		}
	}
	slices.Sort(all)
	return all
}

// get asks Jaeger something.
func (j jaeger) get(t *testing.T, path string, parameters url.Values) []byte {
	t.Helper()
	response, err := http.Get("http://" + j.query + path + "?" + parameters.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s with %v: %d %s", path, parameters, response.StatusCode, body)
	}
	return body
}

// data asks for what Jaeger's own page asks for.
func data[T any](t *testing.T, j jaeger, path string, parameters url.Values) []T {
	t.Helper()
	body := j.get(t, path, parameters)
	var answer struct {
		Data   []T   `json:"data"`
		Errors []any `json:"errors"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("%s with %v: %v in %s", path, parameters, err, body)
	}
	if len(answer.Errors) > 0 {
		t.Fatalf("%s with %v: %v", path, parameters, answer.Errors)
	}
	return answer.Data
}

func (j jaeger) services(t *testing.T) []string {
	t.Helper()
	all := data[string](t, j, "/api/services", nil)
	slices.Sort(all)
	return all
}

// aSpan is a span with all that is said of it, as Jaeger has it.
type aSpan struct {
	trace, id, parent    string
	name, kind           string
	start, end           int64 // nanoseconds since 1970
	status, message      string
	attributes, resource map[string]any
	events               []anEvent
	scope                string
}

type anEvent struct {
	name string
	at   int64
}

// inTime sorts events, of which Jaeger makes an order by name.
func inTime(events []anEvent) {
	slices.SortFunc(events, func(a, b anEvent) int {
		return cmp.Or(cmp.Compare(a.at, b.at), strings.Compare(a.name, b.name))
	})
}

// spans are all that Jaeger has, by their ids: by the API that is OTLP, in which nothing is rounded.
func (j jaeger) spans(t *testing.T) map[string]*aSpan {
	t.Helper()
	return spansOf(t, j.get(t, "/api/v3/traces", url.Values{
		"query.start_time_min": {"2000-01-01T00:00:00Z"}, "query.start_time_max": {"2100-01-01T00:00:00Z"}, "query.num_traces": {strconv.Itoa(most)},
	}))
}

func spansOf(t *testing.T, body []byte) map[string]*aSpan {
	t.Helper()
	var answer struct {
		Result json.RawMessage `json:"result"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatal(err)
	}
	traces, err := new(ptrace.JSONUnmarshaler).UnmarshalTraces(answer.Result)
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]*aSpan)
	for _, r := range traces.ResourceSpans().All() {
		for _, scope := range r.ScopeSpans().All() {
			for _, s := range scope.Spans().All() {
				span := &aSpan{
					trace: s.TraceID().String(), id: s.SpanID().String(), parent: s.ParentSpanID().String(), name: s.Name(), kind: s.Kind().String(),
					start: int64(s.StartTimestamp()), end: int64(s.EndTimestamp()), status: s.Status().Code().String(), message: s.Status().Message(),
					attributes: s.Attributes().AsRaw(), resource: r.Resource().Attributes().AsRaw(), scope: scope.Scope().Name(),
				}
				for _, e := range s.Events().All() {
					span.events = append(span.events, anEvent{e.Name(), int64(e.Timestamp())})
				}
				inTime(span.events)
				if all[span.id] != nil {
					t.Errorf("the span %s is there twice", span.id)
				}
				all[span.id] = span
			}
		}
	}
	return all
}

// jaegerTrace is a trace as Jaeger's own page gets it.
type jaegerTrace struct {
	TraceID   string                                  `json:"traceID"`
	Spans     []jaegerSpan                            `json:"spans"`
	Processes map[string]struct{ ServiceName string } `json:"processes"`
	Warnings  []string                                `json:"warnings"`
}

type jaegerSpan struct {
	SpanID        string `json:"spanID"`
	OperationName string `json:"operationName"`
	References    []struct {
		RefType, TraceID, SpanID string
	} `json:"references"`
	StartTime int64       `json:"startTime"` // microseconds
	Duration  int64       `json:"duration"`
	Tags      []jaegerTag `json:"tags"`
	ProcessID string      `json:"processID"`
	Warnings  []string    `json:"warnings"`
}

type jaegerTag struct {
	Key, Type string
	Value     any
}

// search returns the ids of the traces that have a span of a service with all of these tags, and of a duration, unless that is 0.
func (j jaeger) search(t *testing.T, service string, tags map[string]string, longerThan time.Duration) []string {
	t.Helper()
	parameters := url.Values{"service": {service}, "start": {"0"}, "end": {"4102444800000000"}, "limit": {strconv.Itoa(most)}}
	if len(tags) > 0 {
		text, err := json.Marshal(tags)
		if err != nil {
			t.Fatal(err)
		}
		parameters.Set("tags", string(text))
	}
	if longerThan != 0 {
		parameters.Set("minDuration", longerThan.String())
	}
	var all []string
	for _, trace := range data[jaegerTrace](t, j, "/api/traces", parameters) {
		all = append(all, trace.TraceID)
	}
	return all
}

var (
	traceQL   = regexp.MustCompile(`^\{ (.+) && \(status = error \|\| duration > (\w+)\) \}$`)
	condition = regexp.MustCompile(`^(resource|span)\.([\w.]+) (=~?) ("[^"]*")$`)
)

// find returns how many traces there are of what a panel's TraceQL means. Jaeger has no such language, and Tempo was not to be had: so this is a
// translation into searches of Jaeger's, of what our panels have and no more. It holds that attributes and durations are there by which
// they select, and not that Tempo takes the query. What failed has an error.type; that it has the status too is held elsewhere, since Jaeger's memory storage
// finds nothing by the tag error: it wants a boolean there, and its API makes texts of all tags.
func (j jaeger) find(t *testing.T, query string, spans map[string]*aSpan) int {
	t.Helper()
	m := traceQL.FindStringSubmatch(query)
	if m == nil {
		t.Fatalf("no panel was like this: %s", query)
	}
	slow, err := time.ParseDuration(m[2])
	if err != nil {
		t.Fatal(err)
	}
	services, tags := j.services(t), []map[string]string{{}}
	for _, text := range strings.Split(m[1], " && ") {
		c := condition.FindStringSubmatch(text)
		if c == nil {
			t.Fatalf("no panel was like this: %s", query)
		}
		value, err := strconv.Unquote(c[4])
		if err != nil {
			t.Fatal(err)
		}
		if c[3] == "=" {
			value = regexp.QuoteMeta(value)
		}
		whole := regexp.MustCompile("^(?:" + value + ")$")
		if c[1] == "resource" {
			if c[2] != "service.name" {
				t.Fatalf("no panel was like this: %s", query)
			}
			services = slices.DeleteFunc(services, func(s string) bool { return !whole.MatchString(s) })
			continue
		}
		meant := valuesOf(spans, c[2], whole)
		var next []map[string]string
		for _, set := range tags {
			for _, v := range meant {
				more := maps.Clone(set)
				more[c[2]] = v
				next = append(next, more)
			}
		}
		tags = next
	}
	found := make(map[string]bool)
	add := func(traces []string) {
		for _, id := range traces {
			found[id] = true
		}
	}
	for _, service := range services {
		for _, set := range tags {
			add(j.search(t, service, set, slow+1))
			for _, e := range valuesOf(spans, "error.type", nil) {
				failed := maps.Clone(set)
				failed["error.type"] = e
				add(j.search(t, service, failed, 0))
			}
		}
	}
	return len(found)
}

// valuesOf returns the values that spans have of an attribute, of those that match: Jaeger searches for one, where TraceQL has expressions.
func valuesOf(spans map[string]*aSpan, attribute string, match *regexp.Regexp) []string {
	all := make(map[string]bool)
	for _, s := range spans {
		if v, there := s.attributes[attribute]; there && (match == nil || match.MatchString(fmt.Sprint(v))) {
			all[fmt.Sprint(v)] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// checkPanels holds the trace panels against how many traces each has to find.
func (j jaeger) checkPanels(t *testing.T, spans map[string]*aSpan, want map[string]int) {
	t.Helper()
	asked := 0
	for _, d := range load(t) {
		for where, target := range d.signalTargets(tempoType) {
			for _, role := range []string{"", "client", "server"} {
				set := values{"service_namespace": {"shop"}, "service": {"cart"}}
				if role != "" {
					if d.variable("role") == nil {
						continue
					}
					set["role"] = []string{role}
				}
				asked++
				query, err := d.interpolate(target.Query, set, anyTiming)
				if err != nil {
					t.Fatalf("%s: %v", where, err)
				}
				name := strings.TrimSpace(strings.TrimSuffix(d.file, ".json") + " " + role)
				if got := j.find(t, query, spans); got != want[name] {
					t.Errorf("%s finds %d traces, want %d: %s", name, got, want[name], query)
				}
			}
		}
	}
	if asked != len(want) || asked != 7 {
		t.Errorf("%d queries and %d answers, want 7: a service, and two panels with 3 roles", asked, len(want))
	}
}

// leadsTo looks a trace up as a data source for Jaeger does for a link, by its id alone, and says whether it has a span.
func (j jaeger) leadsTo(t *testing.T, trace, span string) bool {
	t.Helper()
	response, err := http.Get("http://" + j.query + "/api/traces/" + trace)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return false
	}
	var answer struct{ Data []jaegerTrace }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("trace %s: %d, %v", trace, response.StatusCode, err)
	}
	if len(answer.Data) != 1 || answer.Data[0].TraceID != trace {
		t.Fatalf("trace %s: %d traces", trace, len(answer.Data))
	}
	return slices.ContainsFunc(answer.Data[0].Spans, func(s jaegerSpan) bool { return s.SpanID == span })
}

// logged are the lines of a recording's access log, by the ids of their spans. Whole numbers are int64, as attributes are.
func logged(t *testing.T, name string) map[string]map[string]any {
	t.Helper()
	text, err := os.ReadFile(recordings + name + ".log")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]map[string]any)
	for line := range bytes.Lines(text) {
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		var fields map[string]any
		if err := d.Decode(&fields); err != nil {
			t.Fatal(err)
		}
		for key, value := range fields {
			if number, ok := value.(json.Number); ok {
				n, err := number.Int64()
				if err != nil {
					t.Fatal(err)
				}
				fields[key] = n
			}
		}
		all[fields["span_id"].(string)] = fields
	}
	return all
}
