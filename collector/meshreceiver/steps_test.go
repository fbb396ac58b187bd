package meshreceiver

import (
	"slices"
	"testing"

	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/consumer/consumertest"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/receiver/receivertest"

	"github.com/sidelight-mesh/sidelight/agent/budget"
	"github.com/sidelight-mesh/sidelight/collector/internal/fixture"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
	"github.com/sidelight-mesh/sidelight/collector/self"
)

var stepsDown = []self.BudgetStep{
	{
		At: fixture.Now, From: "full", To: "spans_off", Rung: 1, Probability: 1, Cause: "cpu", Down: true,
		CPU: 0.02, CPULimit: 0.01, Memory: 50 << 20, MemoryLimit: 128 << 20,
	},
	{At: fixture.Now, From: "spans_off", To: "full", Probability: 1, Cause: "room", CPU: 0.001, CPULimit: 0.01, Memory: 50 << 20},
}

func TestStepsAreThoseOfTheTable(t *testing.T) {
	table := readTable(t)
	settings := testSettings()
	if len(table.SelfEvents) != 1 || table.SelfEvents[0].Name != stepEvent {
		t.Fatalf("the table has the events %+v", table.SelfEvents)
	}
	attributes := newUsage(t, "step", table.SelfEvents[0].Attributes)
	for i, severity := range []plog.SeverityNumber{plog.SeverityNumberWarn, plog.SeverityNumberInfo} {
		r := newStep(&settings, &stepsDown[i]).ResourceLogs().At(0)
		log := r.ScopeLogs().At(0).LogRecords().At(0)
		attributes.see("step", log.Attributes())
		checkScope(t, table, r.ScopeLogs().At(0).Scope())
		resource := newUsage(t, "resource of a step", metadata.Of(table.ResourceAttributes, "logs"))
		resource.see("step", r.Resource().Attributes())
		if log.EventName() != stepEvent || log.SeverityNumber() != severity || !log.Timestamp().AsTime().Equal(fixture.Now) {
			t.Errorf("event %q of severity %v at %v", log.EventName(), log.SeverityNumber(), log.Timestamp())
		}
	}
	attributes.done()
	var rungs, causes []string
	for r := budget.Full; r <= budget.CountersOnly; r++ {
		rungs = append(rungs, r.String())
	}
	for c := budget.Room; c <= budget.Memory; c++ {
		causes = append(causes, c.String())
	}
	for _, a := range table.SelfEvents[0].Attributes {
		switch a.Name {
		case "sidelight.budget.from", "sidelight.budget.to":
			if !slices.Equal(a.Enum, rungs) {
				t.Errorf("%s: enum %v, want %v", a.Name, a.Enum, rungs)
			}
		case "sidelight.budget.cause":
			if !slices.Equal(a.Enum, causes) {
				t.Errorf("%s: enum %v, want %v", a.Name, a.Enum, causes)
			}
		}
	}
}

// TestStepsAreHandedOn runs a receiver whose records have ended already: its steps go on until it stops, and are not counted as
// connections.
func TestStepsAreHandedOn(t *testing.T) {
	steps := make(chan self.BudgetStep, len(stepsDown))
	settings := testSettings()
	settings.Source, settings.Steps = newSource(), steps
	logs := new(consumertest.LogsSink)
	handedOn, counted := HandedOn.Logs.Load(), Steps.Load()
	factory := NewFactory(With(settings))
	r, err := factory.CreateLogs(t.Context(), receivertest.NewNopSettings(Type), factory.CreateDefaultConfig(), logs)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context(), componenttest.NewNopHost()); err != nil {
		t.Fatal(err)
	}
	for _, s := range stepsDown {
		steps <- s
	}
	fixture.Eventually(t, "the steps", func() bool { return logs.LogRecordCount() == len(stepsDown) && Steps.Load() == counted+2 })
	if err := r.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := HandedOn.Logs.Load() - handedOn; n != 0 {
		t.Errorf("%d are counted as connections", n)
	}
}
