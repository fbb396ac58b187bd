package account

import (
	"reflect"
	"testing"
)

// resting is a kernel that counted 10 attempts: 3 failed, 7 clients and 5 servers were established, of which 4 and 2 are closed.
// No event was lost.
func resting() Kernel {
	return Kernel{
		Attempts: 10, Failed: 3,
		Established:   map[string]uint64{"client": 7, "server": 5},
		Closed:        map[string]uint64{"client": 4, "server": 2},
		Submitted:     map[string]uint64{"pre_connect": 10, "established": 12, "close": 9},
		ReserveFailed: map[string]uint64{"pre_connect": 0, "established": 0, "close": 0},
		StorageFailed: make(map[string]uint64), Adopted: make(map[string]uint64),
	}
}

// reading is the user's side of resting.
func reading() User {
	return User{Received: 31, Decoded: map[string]uint64{"pre_connect": 10, "established": 12, "close": 9}, Followed: 6}
}

func TestLive(t *testing.T) {
	k := resting()
	if got := k.Live(); got != 3+3 {
		t.Errorf("%d are live, want 6", got)
	}
	k.Adopted["client"], k.Adopted["server"] = 10, 20
	if got := k.Live(); got != 3+3+30 {
		t.Errorf("with adopted ones %d are live, want 36", got)
	}
}

func TestNew(t *testing.T) {
	tests := []struct {
		name   string
		change func(before, after *Kernel, user *User)
		want   uint64
	}{
		{"at rest", func(_, _ *Kernel, _ *User) {}, 0},
		{"nothing yet", func(before, after *Kernel, user *User) { *before, *after, *user = Kernel{}, Kernel{}, User{} }, 0},

		{
			"the kernel sent less established than it counted", func(before, after *Kernel, _ *User) {
				before.Established["client"], after.Established["client"] = 9, 9
			}, 2,
		},

		// user space against what was submitted
		{"pre_connect never read", func(_, _ *Kernel, user *User) { user.Decoded["pre_connect"] = 9 }, 1},
		{"established never read", func(_, _ *Kernel, user *User) { user.Decoded["established"] = 10 }, 2},
		{"close never read", func(_, _ *Kernel, user *User) { user.Decoded["close"] = 6 }, 3},
		{"none of any kind read", func(_, _ *Kernel, user *User) { *user = User{} }, 31},
		{
			"too much of one kind makes up for no other", func(_, _ *Kernel, user *User) {
				user.Decoded["established"], user.Decoded["close"] = 13, 8
			}, 1,
		},
		{
			"read while the kernel went on", func(_, after *Kernel, user *User) {
				after.Attempts, after.Submitted["pre_connect"], user.Decoded["pre_connect"] = 15, 15, 12
			}, 0,
		},
		{
			"what came after the first reading may still be in the ring", func(_, after *Kernel, _ *User) {
				after.Attempts, after.Submitted["pre_connect"] = 15, 15
			}, 0,
		},
		{
			"a decode failure makes up for any kind", func(_, _ *Kernel, user *User) {
				user.Decoded["established"], user.DecodeFailed = 10, 2
			}, 0,
		},
		{
			"but for one event only", func(_, _ *Kernel, user *User) {
				user.Decoded["pre_connect"], user.Decoded["established"], user.DecodeFailed = 9, 11, 1
			}, 1,
		},
		{"a decode failure too many is no loss", func(_, _ *Kernel, user *User) { user.DecodeFailed = 5 }, 0},

		// the kernel against itself
		{
			"a close without an event", func(before, after *Kernel, user *User) {
				before.Submitted["close"], after.Submitted["close"], user.Decoded["close"] = 8, 8, 8
			}, 1,
		},
		{
			"no room in the ring for closes, which is counted", func(before, after *Kernel, user *User) {
				before.Submitted["close"], after.Submitted["close"], user.Decoded["close"] = 5, 5, 5
				before.ReserveFailed["close"], after.ReserveFailed["close"] = 4, 4
				after.Aggregated, after.Totalled = 3, 1
			}, 0,
		},
		{
			"a lost close without its sums", func(before, after *Kernel, user *User) {
				before.Submitted["close"], after.Submitted["close"], user.Decoded["close"] = 5, 5, 5
				before.ReserveFailed["close"], after.ReserveFailed["close"] = 4, 4
				after.Aggregated = 3
			}, 1,
		},
		{"a failure without an event", func(before, _ *Kernel, _ *User) { before.Failed++ }, 1},
		{"a closed client without an event", func(before, _ *Kernel, _ *User) { before.Closed["client"]++ }, 1},
		{"a closed server without an event", func(before, _ *Kernel, _ *User) { before.Closed["server"]++ }, 1},
		{"an attempt without an event", func(before, _ *Kernel, _ *User) { before.Attempts++ }, 1},
		{
			"no room in the ring for an attempt, which is counted", func(before, after *Kernel, _ *User) {
				before.Attempts, after.Attempts, after.ReserveFailed["pre_connect"] = 11, 11, 1
			}, 0,
		},
		{
			"no state for an attempt, which is counted", func(before, after *Kernel, _ *User) {
				before.Attempts, after.Attempts, after.StorageFailed["client"] = 11, 11, 1
			}, 0,
		},
		{
			"no state for handshakes, which is counted", func(before, after *Kernel, _ *User) {
				before.Established["server"], after.Established["server"], after.StatelessEstablished = 6, 6, 1
			}, 0,
		},
		{
			"a handshake too many without state", func(before, after *Kernel, _ *User) {
				before.Established["server"], after.Established["server"], after.StatelessEstablished = 7, 7, 1
			}, 1,
		},
		{
			"an attempt from before the start", func(before, after *Kernel, _ *User) {
				before.Attempts, after.Attempts, after.AdoptedConnecting = 11, 11, 1
			}, 0,
		},
		{
			// A program counts the step, then the event; the first reading may fall between.
			"read between step and event", func(before, after *Kernel, _ *User) {
				before.Attempts, before.Failed = 11, 4
				after.Attempts, after.Failed, after.Submitted["pre_connect"], after.Submitted["close"] = 11, 4, 11, 10
			}, 0,
		},
		{"closes of connections from before the start", func(before, after *Kernel, _ *User) {
			before.UntrackedClosed, after.UntrackedClosed = 7, 7
		}, 0},

		{
			"losses add up", func(before, _ *Kernel, user *User) {
				user.Decoded["pre_connect"], user.Decoded["close"] = 9, 7
				before.Failed, before.Attempts = 4, 15
			}, 1 + 2 + 1 + 5,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before, after, user := resting(), resting(), reading()
			test.change(&before, &after, &user)
			got := New(before, after, user)
			if got.Unaccounted != test.want {
				t.Errorf("unaccounted is %d, want %d", got.Unaccounted, test.want)
			}
			if want := (Account{Kernel: after, User: user, Unaccounted: test.want}); !reflect.DeepEqual(got, want) {
				t.Errorf("account does not show the later reading:\ngot  %+v\nwant %+v", got, want)
			}
		})
	}
}
