//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Programs for the moment in which maps of one layout give way to maps of another. Each stands before a program of mesh.bpf.c at its hook: what the socket's
 * state is in the old map it copies to the new one, then it makes way for that program by a tail call, which leaves that one all of the stack. So programs need not know
 * of other layouts than their own, and pay nothing for it but in that moment.
 *
 * An object of its own, because nobody loads it else. It knows no struct of either layout: user space gives it the places of what it needs to know, and for each byte
 * of a new state the place of that byte in an old one, all of which it derives from both maps' BTF (agent/datapath/carry.go). They are constants to the verifier.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>

#include "kernel.h"

#define CARRY_ROOM 400 /* for a state of any layout, on the stack */
#define CARRY_NONE 0xffff /* there is no such place */
#define CARRY_DONE 0xff /* the phase of an old state that was carried over; no other has it */

/* As enum mesh_holds: a value keeps its meaning in all layouts. */
#define CARRY_HOLDS_BACKEND 1
#define CARRY_HOLDS_OPEN 2
#define CARRY_HOLDS_CONNECTING 4
#define CARRY_HOLDS_IN_FLIGHT 8

/* The state: its sizes, and where each byte comes from. */
const volatile __u32 carry_size = 8;
const volatile __u32 carry_size_before = 8;
const volatile __u16 carry_from[CARRY_ROOM];

/* Where in a state are: event.start_ns, phase, decided.holds, traced; in the new one also event.flags, and of `decided` the backend and two limits. */
const volatile __u16 carry_start, carry_start_before;
const volatile __u16 carry_phase, carry_phase_before;
const volatile __u16 carry_holds = CARRY_NONE, carry_holds_before = CARRY_NONE;
const volatile __u16 carry_traced_before;
const volatile __u16 carry_flags;
const volatile __u16 carry_backend, carry_limits;

/* Bits of event.flags that are not carried: a decision where there is no mesh any more. */
const volatile __u16 carry_flags_gone;

/* Whether `loads` and `limit_states` are others than before: then what is held goes over with the state. Where in them it is counted. */
const volatile bool carry_counts_loads, carry_counts_limits;
const volatile __u16 carry_load_open;
const volatile __u16 carry_limit_lock, carry_limit_open, carry_limit_connecting;

/* States that found no room in the new map. Read by user space. */
__u64 carry_failed;

/*
 * The maps. Their values' sizes are set at load, and the maps themselves are those of the two sets, but for the last: those hold the programs that are tail-called. They
 * are pinned for as long as that goes on, because the kernel empties such a map when user space lets go of it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u64);
} connections_before SEC(".maps"), connections SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} loads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} limit_states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} verdicts_before SEC(".maps"), verdicts SEC(".maps");

#define CARRY_TO(name)                                 \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, 1);                \
		__type(key, __u32);                    \
		__type(value, __u32);                  \
	} name SEC(".maps")

CARRY_TO(to_sockops);
CARRY_TO(to_connect4);
CARRY_TO(to_connect6);
CARRY_TO(to_peername4);
CARRY_TO(to_peername6);
CARRY_TO(to_release);
CARRY_TO(to_state);
CARRY_TO(to_state_nested);

#define CARRY_AT(type, base, place) ((type *)((void *)(base) + (place)))

static __always_inline void carry_limit_count(__u32 index, __u32 held, __s64 n)
{
	void *state;

	if (!index)
		return;
	state = bpf_map_lookup_elem(&limit_states, &index);
	if (!state)
		return;
	bpf_spin_lock(CARRY_AT(struct bpf_spin_lock, state, carry_limit_lock));
	if (held & CARRY_HOLDS_OPEN)
		*CARRY_AT(__u64, state, carry_limit_open) += n;
	if (held & CARRY_HOLDS_CONNECTING)
		*CARRY_AT(__u64, state, carry_limit_connecting) += n;
	bpf_spin_unlock(CARRY_AT(struct bpf_spin_lock, state, carry_limit_lock));
}

/* Counts what is held for a state n times more. */
static __always_inline void carry_count(void *now, __u32 held, __s64 n, bool of_loads, bool of_limits)
{
	__u32 index;
	void *load;

	if (of_loads && held & CARRY_HOLDS_BACKEND) {
		index = *CARRY_AT(__u32, now, carry_backend);
		load = bpf_map_lookup_elem(&loads, &index);
		if (load)
			__sync_fetch_and_add(CARRY_AT(__u64, load, carry_load_open), n);
	}
	if (of_limits && held & (CARRY_HOLDS_OPEN | CARRY_HOLDS_CONNECTING)) {
		carry_limit_count(*CARRY_AT(__u32, now, carry_limits), held, n);
		carry_limit_count(*CARRY_AT(__u32, now, carry_limits + sizeof(__u32)), held, n);
	}
}

/*
 * What is held goes over once, whoever comes first. The old state goes on saying whether a SYN left: programs of before that show a connection's address, or
 * give back what was abandoned, ask for that. It is in the new state before it is counted there: who ends the connection in between gives it back.
 */
static __always_inline void carry_held(void *before, void *now)
{
	__u32 had;

	if (carry_holds == CARRY_NONE || carry_holds_before == CARRY_NONE)
		return;
	had = __sync_fetch_and_and(CARRY_AT(__u32, before, carry_holds_before), CARRY_HOLDS_IN_FLIGHT) & ~CARRY_HOLDS_IN_FLIGHT;
	if (!had)
		return;
	__sync_fetch_and_or(CARRY_AT(__u32, now, carry_holds), had);
	carry_count(now, had, 1, carry_counts_loads, carry_counts_limits);
}

/* The state of a socket that has none in the new map, as a value for it. */
static __always_inline void carry_translate(__u64 *state, const void *before)
{
	__u32 i, from;

	__builtin_memset(state, 0, CARRY_ROOM);
#pragma clang loop unroll(disable)
	for (i = 0; i < CARRY_ROOM; i++) {
		if (i >= carry_size)
			break;
		from = carry_from[i];
		if (from < carry_size_before)
			*CARRY_AT(__u8, state, i) = *CARRY_AT(const __u8, before, from);
	}
	*CARRY_AT(__u16, state, carry_flags) &= ~carry_flags_gone;
	if (carry_holds != CARRY_NONE)
		*CARRY_AT(__u32, state, carry_holds) &= CARRY_HOLDS_IN_FLIGHT;
}

/*
 * Carries over what is known of a socket, once: its old state is marked, so that who looks at it later does not make anew what a program has taken away since, to
 * begin with the next connection. Whether there was room. may_delete: that the hook has bpf_sk_storage_delete(), and holds the socket's lock.
 */
static __always_inline bool carry(void *sk, void *before, const bool may_delete)
{
	__u64 state[CARRY_ROOM / sizeof(__u64)];
	void *now;
	__u32 had;

	if (*CARRY_AT(volatile __u8, before, carry_phase_before) == CARRY_DONE)
		return true;
	now = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (now && *CARRY_AT(__u64, now, carry_start) < *CARRY_AT(__u64, before, carry_start_before) && may_delete) {
		/* connect() was called again, and a program of before saw it. */
		if (carry_holds != CARRY_NONE) {
			had = __sync_fetch_and_and(CARRY_AT(__u32, now, carry_holds), 0);
			if (!(had & CARRY_HOLDS_IN_FLIGHT))
				carry_count(now, had, -1, true, true);
		}
		bpf_sk_storage_delete(&connections, sk);
		now = NULL;
	}
	if (!now) {
		carry_translate(state, before);
		if (*CARRY_AT(__u8, state, carry_phase) == CARRY_DONE) /* by somebody else, just now */
			return true;
		now = bpf_sk_storage_get(&connections, sk, state, BPF_SK_STORAGE_GET_F_CREATE);
		if (!now) /* somebody else made it just now, or there is no room */
			now = bpf_sk_storage_get(&connections, sk, NULL, 0);
	}
	if (!now)
		return false;
	carry_held(before, now);
	*CARRY_AT(volatile __u8, before, carry_phase_before) = CARRY_DONE;
	return true;
}

static __always_inline bool carry_of(void *sk, const bool may_delete)
{
	void *before = bpf_sk_storage_get(&connections_before, sk, NULL, 0);

	return !before || carry(sk, before, may_delete);
}

SEC("sockops")
int carry_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	void *before;

	if (sk) {
		before = bpf_sk_storage_get(&connections_before, sk, NULL, 0);
		if (before) {
			carry(sk, before, true);
			/* For a getpeername program of before. */
			if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB && carry_holds_before != CARRY_NONE)
				__sync_fetch_and_or(CARRY_AT(__u32, before, carry_holds_before), CARRY_HOLDS_IN_FLIGHT);
			/* What a socket was before it listens would look newer than what it is then. */
			if (ctx->op == BPF_SOCK_OPS_TCP_LISTEN_CB)
				bpf_sk_storage_delete(&connections_before, sk);
		}
	}
	bpf_tail_call(ctx, &to_sockops, 0);
	return 1;
}

#define CARRY_SOCK_ADDR(section, name, to)     \
	SEC(section)                           \
	int name(struct bpf_sock_addr *ctx)    \
	{                                      \
		struct bpf_sock *sk = ctx->sk; \
                                               \
		if (sk)                        \
			carry_of(sk, true);    \
		bpf_tail_call(ctx, &to, 0);    \
		return 1;                      \
	}

CARRY_SOCK_ADDR("cgroup/connect4", carry_connect4, to_connect4)
CARRY_SOCK_ADDR("cgroup/connect6", carry_connect6, to_connect6)
CARRY_SOCK_ADDR("cgroup/getpeername4", carry_peername4, to_peername4)
CARRY_SOCK_ADDR("cgroup/getpeername6", carry_peername6, to_peername6)

SEC("cgroup/sock_release")
int carry_release(struct bpf_sock *ctx)
{
	carry_of(ctx, false);
	bpf_tail_call(ctx, &to_release, 0);
	return 1;
}

/*
 * Attached before the others, while sockops is still the old one: so it touches nothing but what ends here. The old tracing programs come first, and when they told
 * of the end there is nothing left to carry.
 */
static __always_inline void carry_end(__u64 *args)
{
	struct sock *sk = (struct sock *)args[0];
	void *before;

	if ((int)args[2] != BPF_TCP_CLOSE || sk->sk_protocol != IPPROTO_TCP)
		return;
	before = bpf_sk_storage_get(&connections_before, sk, NULL, 0);
	if (before && *CARRY_AT(__u8, before, carry_traced_before))
		carry(sk, before, true);
}

SEC("tp_btf/inet_sock_set_state")
int carry_state(__u64 *args)
{
	carry_end(args);
	bpf_tail_call(args, &to_state, 0);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int carry_state_nested(__u64 *args)
{
	carry_end(args);
	bpf_tail_call(args, &to_state_nested, 0);
	return 0;
}

/* Over the sockets of a network namespace, whose locks it holds. */
SEC("iter/tcp")
int carry_sockets(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;

	if (!skc)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (tp)
		carry_of(tp, true);
	return 0;
}

/* Over what is in the old map: also sockets that are in no table, because they have not connected yet, or in a namespace that was not found. */
SEC("iter/bpf_sk_storage_map")
int carry_rest(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct sock *sk = ctx->sk;

	/* It holds no lock, so it deletes nothing: a connect program may be at work with that. */
	if (sk && ctx->value && !carry_of(sk, false))
		__sync_fetch_and_add(&carry_failed, 1);
	return 0;
}

/* Adds up verdicts of before. Taking the old entry away says that it was added: who is killed in between has done both or neither. */
struct carry_verdict {
	__u8 key_before[32];
	__u8 key[32];
	__u64 count;
};

SEC("syscall")
int carry_verdicts(struct carry_verdict *args)
{
	__u64 *count, none = 0;
	__u8 key[32];

	__builtin_memcpy(key, args->key_before, sizeof(key));
	if (bpf_map_delete_elem(&verdicts_before, key))
		return 0;
	__builtin_memcpy(key, args->key, sizeof(key));
	count = bpf_map_lookup_elem(&verdicts, key);
	if (!count) {
		bpf_map_update_elem(&verdicts, key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&verdicts, key);
	}
	if (count)
		__sync_fetch_and_add(count, args->count);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
