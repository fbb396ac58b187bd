package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	storageremote "github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// series is what a test reads of one.
type series struct {
	Labels  map[string]string `json:"labels"`
	Value   float64           `json:"value"`
	Samples int               `json:"samples"`
}

// runPrometheus has the handler and the database that Prometheus has behind --web.enable-remote-write-receiver.
func runPrometheus(ctx context.Context, address string) error {
	dir, err := os.MkdirTemp("", "backends")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	db, err := tsdb.Open(dir, nil, nil, tsdb.DefaultOptions(), nil)
	if err != nil {
		return err
	}
	defer db.Close()
	mux := http.NewServeMux()
	mux.Handle("/api/v1/write", storageremote.NewWriteHandler(slog.Default(), prometheus.NewRegistry(), db,
		remote.MessageTypes{remote.WriteV1MessageType, remote.WriteV2MessageType}, false, false, false))
	mux.HandleFunc("/series", func(w http.ResponseWriter, r *http.Request) {
		all, err := last(r.Context(), db)
		if err == nil {
			err = json.NewEncoder(w).Encode(all)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func last(ctx context.Context, db *tsdb.DB) ([]series, error) {
	q, err := db.Querier(math.MinInt64, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	all := []series{}
	set := q.Select(ctx, false, nil, labels.MustNewMatcher(labels.MatchNotEqual, "__name__", ""))
	var it chunkenc.Iterator
	for set.Next() {
		s := series{Labels: set.At().Labels().Map()}
		it = set.At().Iterator(it)
		for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
			s.Samples++
			if kind == chunkenc.ValFloat {
				_, s.Value = it.At()
			}
		}
		all = append(all, s)
	}
	return all, set.Err()
}

func checkPrometheus(file string) error {
	c, err := config.LoadFile(file, false, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	for _, pattern := range c.RuleFiles {
		files, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("%s: no rule file is %s", file, pattern)
		}
		for _, f := range files {
			if _, errs := rulefmt.ParseFile(f, false, model.UTF8Validation, parser.NewParser(parser.Options{})); len(errs) > 0 {
				return errors.Join(errs...)
			}
		}
	}
	return nil
}
