package live

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"

	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
)

// ReceiverArgument is the first argument of the program when it is an OTLP receiver.
const ReceiverArgument = "receiver-process"

// received is how much of each signal a receiver got so far.
type received struct {
	Logs   int `json:"logs"`
	Spans  int `json:"spans"`
	Points int `json:"points"`
}

// receiver takes OTLP over HTTP. While a slice runs it only keeps the bodies, as they come; it looks into them when it is asked what came.
type receiver struct {
	mu    sync.Mutex
	kept  []body
	total received
	err   error
}

type body struct {
	path    string
	gzipped bool
	bytes   []byte
}

func receiverCommand(self string) *exec.Cmd { return exec.Command(self, ReceiverArgument) }

// ReceiverMain is the process. It writes its address as a line to standard output and runs until it is killed.
func ReceiverMain() error {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := fmt.Println(listener.Addr()); err != nil {
		return err
	}
	r := &receiver{}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/{signal}", r.take)
	mux.HandleFunc("GET /received", r.tell)
	return (&http.Server{Handler: mux}).Serve(listener)
}

func (r *receiver) take(w http.ResponseWriter, request *http.Request) {
	var buffer bytes.Buffer
	buffer.Grow(int(max(0, request.ContentLength)))
	if _, err := buffer.ReadFrom(request.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	r.kept = append(r.kept, body{request.PathValue("signal"), request.Header.Get("Content-Encoding") == "gzip", buffer.Bytes()})
	r.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-protobuf") // an empty message: everything is taken
}

func (r *receiver) tell(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.kept {
		if err := r.total.add(b); err != nil && r.err == nil {
			r.err = err
		}
	}
	r.kept = nil
	if r.err != nil {
		http.Error(w, r.err.Error(), http.StatusInternalServerError)
		return
	}
	_ = json.NewEncoder(w).Encode(r.total) // who asked is gone
}

func (t *received) add(b body) error {
	message := b.bytes
	if b.gzipped {
		unzip, err := gzip.NewReader(bytes.NewReader(message))
		if err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
		if message, err = io.ReadAll(unzip); err != nil {
			return fmt.Errorf("%s: %w", b.path, err)
		}
	}
	switch b.path {
	case "logs":
		request := plogotlp.NewExportRequest()
		if err := request.UnmarshalProto(message); err != nil {
			return fmt.Errorf("logs: %w", err)
		}
		t.Logs += request.Logs().LogRecordCount()
	case "traces":
		request := ptraceotlp.NewExportRequest()
		if err := request.UnmarshalProto(message); err != nil {
			return fmt.Errorf("traces: %w", err)
		}
		t.Spans += request.Traces().SpanCount()
	case "metrics":
		request := pmetricotlp.NewExportRequest()
		if err := request.UnmarshalProto(message); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
		t.Points += request.Metrics().DataPointCount()
	default:
		return fmt.Errorf("a request for %q, which is no signal", b.path)
	}
	return nil
}

// logLines counts the lines of a file that grows. Used by one goroutine.
type logLines struct {
	path   string
	offset int64
	lines  int
	buffer []byte
}

func (l *logLines) count() (int, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if l.buffer == nil {
		l.buffer = make([]byte, 1<<20)
	}
	for {
		n, err := f.ReadAt(l.buffer, l.offset)
		l.offset += int64(n)
		l.lines += bytes.Count(l.buffer[:n], []byte("\n"))
		if err == io.EOF {
			return l.lines, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
