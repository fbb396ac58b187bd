/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What happens to a connect(): where it goes, whether it may, and within which limits. */
#ifndef SIDELIGHT_DECIDE_H
#define SIDELIGHT_DECIDE_H

#include "balance.h"
#include "decided.h"
#include "identity.h"
#include "listener.h"
#include "policy.h"
#include "refuse.h"

/*
 * The agent, by its process id in the initial namespace and when it started: its health checks go to endpoints, whatever policies say of it. 0: unknown.
 * Set by it when it attaches. These programs outlive it, and its process id may be another's then.
 */
volatile __u32 agent_pid;
volatile __u64 agent_start_ticks; /* since boot, as field 22 of /proc/PID/stat */

#define DECIDE_TICK_NS 10000000 /* 1 s / USER_HZ, which is 100 on all architectures that we run on */

static __always_inline bool decide_is_agent(void)
{
	struct task_struct *task;

	if (!agent_pid)
		return false;
	task = (struct task_struct *)bpf_get_current_task_btf();
	return task->tgid == (int)agent_pid && task->group_leader->start_boottime / DECIDE_TICK_NS == agent_start_ticks;
}

/* By the cgroup of the socket, which is where the process was when it made it: a process that moves takes no socket along. */
static __always_inline __u32 decide_who(struct bpf_sock *sk)
{
	struct tcp_sock *tp = cgroup_levels ? bpf_skc_to_tcp_sock(sk) : NULL;

	return tp ? identity_of_cgroup(tp->inet_conn.icsk_inet.sk.sk_cgrp_data.cgroup) : 0;
}

/* One connect() on its way through. */
struct decide_call {
	struct mesh_address dialled; /* then what is connected to */
	__u32 port; /* the same, host byte order */
	__u32 limits[2];
	__u32 source; /* class */
	__u32 affinity;
	__u8 reason; /* enum mesh_reason; MESH_OK: it may */
};

/*
 * Who is at the other end, by his address, or because he listens in this network namespace: at this very address, or on any and it is of loopback. Whether
 * another address is this namespace's is not known here; then the server's side asks.
 */
static __always_inline __u32 decide_destination(struct bpf_sock_addr *ctx, const struct decide_call *call)
{
	__u32 found;

	if (!(mesh_has & MESH_HAS_POLICIES))
		return 0;
	found = identity_of_address(&call->dialled);
	return found ? found
		     : listener_find(bpf_get_netns_cookie(ctx), &call->dialled, call->port, listener_is_loopback(&call->dialled));
}

/*
 * Nowhere is here: the kernel connects to 0.0.0.0 as to the address that the socket is bound to, or 127.0.0.1 (ip_route_output_key_hash_rcu), and to :: as to
 * ::1 (tcp_v6_connect), but after this hook.
 */
static __always_inline void decide_unspecified(const struct bpf_sock *sk, struct mesh_address *dialled)
{
	__u32 *word = (__u32 *)dialled->addr;

	if (word[0] | word[1] | word[3])
		return;
	if (word[2] == bpf_htonl(0xffff)) {
		if (sk->family == AF_INET) {
			word[3] = sk->src_ip4;
			barrier(); /* or clang reads either field at a computed place */
		} else {
			word[3] = sk->src_ip6[3];
		}
		if (!word[3])
			word[3] = bpf_htonl(0x7f000001);
	} else if (!word[2]) {
		/* A socket that is bound to an IPv4 address connects by IPv4 (tcp_v6_connect). */
		if (sk->src_ip6[2] == bpf_htonl(0xffff) && !sk->src_ip6[0] && !sk->src_ip6[1])
			address_from_v4(dialled->addr, bpf_htonl(0x7f000001));
		else
			word[3] = bpf_htonl(1);
	}
}

/* The service that was dialled, if one was, and an endpoint of it. */
static __always_inline void decide_where(struct bpf_sock_addr *ctx, struct decide_call *call, struct mesh_decision *d)
{
	struct mesh_frontend key = {.port = call->port};
	struct mesh_backend *backend;
	struct mesh_table *table;
	__u32 *pool, index;

	__builtin_memcpy(key.addr, call->dialled.addr, sizeof(key.addr));
	pool = bpf_map_lookup_elem(&frontends, &key);
	if (!pool && mesh_has & MESH_HAS_ANY_PORT) {
		key.port = 0;
		pool = bpf_map_lookup_elem(&frontends, &key);
	}
	if (!pool) {
		d->destination = decide_destination(ctx, call);
		return;
	}
	index = *(volatile __u32 *)pool;
	pool = bpf_map_lookup_elem(&pools, &index);
	if (!pool)
		goto none;
	/* One aligned word, read once: from here on all is of one generation. */
	index = *(volatile __u32 *)pool;
	table = bpf_map_lookup_elem(&tables, &index);
	if (!index || !table)
		goto none;
	d->service = table->service;
	d->generation = table->generation;
	call->limits[0] = table->limit;
	if (!table->size)
		goto none;
	if (table->algorithm == MESH_MAGLEV && !call->affinity)
		call->affinity = bpf_get_netns_cookie(ctx);
	index = balance_choose(table, call->affinity);
	backend = bpf_map_lookup_elem(&backends, &index);
	if (!index || !backend)
		goto none;
	d->backend = index;
	d->backend_tag = backend->tag;
	__builtin_memcpy(call->dialled.addr, backend->addr, sizeof(backend->addr));
	if (backend->port)
		call->port = backend->port;
	d->destination = backend->workload;
	if (!d->destination)
		d->destination = decide_destination(ctx, call);
	return;
none:
	call->reason = MESH_NO_ENDPOINT;
}

static __always_inline void decide_whether(struct bpf_sock *sk, struct decide_call *call, struct mesh_decision *d)
{
	struct policy_question question = {.source = call->source, .port = call->port};
	struct mesh_workload *workload;
	__u32 index = d->destination;

	if (!index)
		return;
	workload = bpf_map_lookup_elem(&workloads, &index);
	if (!workload)
		return;
	question.set = *(volatile __u32 *)&workload->policy_set;
	if (!question.set)
		return;
	if (sk->family == AF_INET && sk->src_ip4) {
		address_from_v4(question.address.addr, sk->src_ip4);
		question.address_known = true;
	} else if (sk->family == AF_INET6 && (sk->src_ip6[0] | sk->src_ip6[1] | sk->src_ip6[2] | sk->src_ip6[3])) {
		__u32 *word = (__u32 *)question.address.addr;

		word[0] = sk->src_ip6[0];
		word[1] = sk->src_ip6[1];
		word[2] = sk->src_ip6[2];
		word[3] = sk->src_ip6[3];
		question.address_known = true;
	}
	policy_decide(d, &question, true);
	if (policy_denies(d))
		call->reason = MESH_DENIED;
}

/*
 * Takes of both limits, or of neither; but a token of the caller's own that was taken is gone. The caller's own comes first: who is over it costs the service
 * nothing.
 */
static __always_inline void decide_within(struct decide_call *call, struct mesh_decision *d, __u64 now)
{
	__u32 bound = 0;

	if (call->limits[1]) {
		call->reason = limit_take(call->limits[1], now, &bound);
		d->limit = call->limits[1];
	}
	if (call->reason == MESH_OK && call->limits[0]) {
		call->reason = limit_take(call->limits[0], now, &bound);
		d->limit = call->limits[0];
		if (call->reason != MESH_OK)
			limit_give(call->limits[1], MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING);
	}
	d->limit_value = bound;
	if (call->reason == MESH_OK)
		d->limit = 0;
}

/* Keeps the decision with the connection. Without room for it nothing could be given back, so there is no connection. */
static __always_inline bool decide_keep(struct mesh_connection *conn, const struct decide_call *call,
					const struct mesh_decision *d)
{
	struct mesh_decided *decided;
	struct mesh_load *load;
	__u32 backend = d->backend;

	if (!conn) {
		limit_give(call->limits[0], MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING);
		limit_give(call->limits[1], MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING);
		return false;
	}
	decided = decided_room(conn);
	decided->decision = *d;
	decided->limits[0] = call->limits[0];
	decided->limits[1] = call->limits[1];
	decided->source = call->source;
	decided->holds = call->limits[0] | call->limits[1] ? MESH_HOLDS_OPEN | MESH_HOLDS_CONNECTING : 0;
	conn->event.flags |= MESH_DECIDED;
	if (!backend)
		return true;
	load = bpf_map_lookup_elem(&loads, &backend);
	if (load) {
		__sync_fetch_and_add(&load->open, 1ULL);
		__sync_fetch_and_add(&load->picks, 1ULL);
		decided->holds |= MESH_HOLDS_BACKEND;
	}
	return true;
}

static __always_inline void decide_refuse(struct bpf_sock_addr *ctx, struct bpf_sock *sk, __u8 reason,
					  const struct mesh_decision *d, __u64 start)
{
	struct mesh_event event = {
		.role = MESH_CLIENT,
		.reason = reason,
		.peer_port = d->original_port,
		.flags = REFUSE_FLAGS,
		.cookie = bpf_get_socket_cookie(ctx),
		.start_ns = start,
		.event_ns = start + d->decision_ns,
	};
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (tp)
		event.cgroup_id = cgroup_id_of(&tp->inet_conn.icsk_inet.sk);
	__builtin_memcpy(event.peer_addr, d->original_addr, sizeof(event.peer_addr));
	owner_from_current(&event.owner);
	refuse_tell(&event, d);
}

/*
 * The whole decision. call: where to, and then where really. The result is MESH_OK, or why it is refused; conn may be NULL, when there was no
 * room for it.
 */
static __always_inline __u8 decide(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct mesh_connection *conn,
				   struct decide_call *call)
{
	struct mesh_decision d = {};
	struct mesh_workload *self;
	__u32 who = decide_who(sk);
	/* Read a moment ago, when the call was noted. */
	__u64 start = conn ? conn->event.start_ns : bpf_ktime_get_ns();

	if (decide_is_agent())
		return MESH_OK;
	decide_unspecified(sk, &call->dialled);
	__builtin_memcpy(d.original_addr, call->dialled.addr, sizeof(d.original_addr));
	d.original_port = call->port;
	d.rule = MESH_NO_RULE;
	d.dry_rule = MESH_NO_RULE;
	self = who ? bpf_map_lookup_elem(&workloads, &who) : NULL;
	if (self) {
		if (self->flags & MESH_WORKLOAD_BYPASS)
			return MESH_OK;
		call->source = self->source;
		call->affinity = self->affinity;
		call->limits[1] = *(volatile __u32 *)&self->limit;
	}
	decide_where(ctx, call, &d);
	if (call->reason == MESH_OK)
		decide_whether(sk, call, &d);
	if (call->reason == MESH_OK)
		decide_within(call, &d, start);
	if (call->reason == MESH_OK) {
		/* Nothing of the mesh's. */
		if (!d.service && !d.policy_set && !call->limits[1])
			return MESH_OK;
		d.decision_ns = bpf_ktime_get_ns() - start;
		if (decide_keep(conn, call, &d))
			return MESH_OK;
		call->reason = MESH_OTHER;
	}
	d.decision_ns = bpf_ktime_get_ns() - start;
	decide_refuse(ctx, sk, call->reason, &d, start);
	return call->reason;
}

#endif
