/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_PROG_CONNECT_H
#define SIDELIGHT_PROG_CONNECT_H

#include <bpf/bpf_core_read.h>

#include "../lib/connection.h"
#include "../lib/decide.h"

/* What the caller of a refused connect() gets. Where the kernel has no bpf_set_retval (before 5.18) it is EPERM for all. */
static __always_inline int connect_refuse(__u8 reason)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_set_retval) && reason != MESH_DENIED && reason != MESH_OTHER)
		bpf_set_retval(-ECONNREFUSED);
	return 0;
}

static __always_inline int connect_decide4(struct bpf_sock_addr *ctx, struct mesh_connection *conn)
{
	struct decide_call call = {};
	struct bpf_sock *sk = ctx->sk;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return 1;
	address_from_v4(call.dialled.addr, ctx->user_ip4);
	call.port = bpf_ntohs(ctx->user_port);
	if (decide(ctx, sk, conn, &call) != MESH_OK)
		return connect_refuse(call.reason);
	ctx->user_ip4 = ((__u32 *)call.dialled.addr)[3];
	ctx->user_port = bpf_htons(call.port);
	return 1;
}

static __always_inline int connect_decide6(struct bpf_sock_addr *ctx, struct mesh_connection *conn)
{
	struct decide_call call = {};
	__u32 *word = (__u32 *)call.dialled.addr;
	struct bpf_sock *sk = ctx->sk;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return 1;
	word[0] = ctx->user_ip6[0];
	word[1] = ctx->user_ip6[1];
	word[2] = ctx->user_ip6[2];
	word[3] = ctx->user_ip6[3];
	call.port = bpf_ntohs(ctx->user_port);
	if (decide(ctx, sk, conn, &call) != MESH_OK)
		return connect_refuse(call.reason);
	ctx->user_ip6[0] = word[0];
	ctx->user_ip6[1] = word[1];
	ctx->user_ip6[2] = word[2];
	ctx->user_ip6[3] = word[3];
	ctx->user_port = bpf_htons(call.port);
	return 1;
}

/* 1 lets the connect go on: to where the caller wanted. */
SEC("cgroup/connect4")
int mesh_connect4(struct bpf_sock_addr *ctx)
{
	connection_called(false, ctx);
	return 1;
}

SEC("cgroup/connect6")
int mesh_connect6(struct bpf_sock_addr *ctx)
{
	connection_called(false, ctx);
	return 1;
}

/* 1 lets the connect go on: to where the context says then. */
SEC("cgroup/connect4")
int mesh_connect4_in_mesh(struct bpf_sock_addr *ctx)
{
	struct mesh_connection *conn;

	if (!mesh)
		return 1;
	conn = connection_called(true, ctx);
	return connect_decide4(ctx, conn);
}

SEC("cgroup/connect6")
int mesh_connect6_in_mesh(struct bpf_sock_addr *ctx)
{
	struct mesh_connection *conn;

	if (!mesh)
		return 1;
	conn = connection_called(true, ctx);
	return connect_decide6(ctx, conn);
}

/* getpeername() says what was dialled. The next two are attached only while there is a mesh, as are mesh_create and mesh_release. */
static __always_inline const struct mesh_decision *peername_decision(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct mesh_decided *d;

	if (!sk || ctx->protocol != IPPROTO_TCP)
		return NULL;
	if (!mesh)
		return NULL;
	d = decided_of(true, bpf_sk_storage_get(&connections, sk, NULL, 0));
	/* One that was given up, or is over, has been another's address since. */
	return d && d->decision.service && d->holds & MESH_HOLDS_IN_FLIGHT ? &d->decision : NULL;
}

SEC("cgroup/getpeername4")
int mesh_peername4(struct bpf_sock_addr *ctx)
{
	const struct mesh_decision *d = peername_decision(ctx);

	if (d) {
		ctx->user_ip4 = ((const __u32 *)d->original_addr)[3];
		ctx->user_port = bpf_htons(d->original_port);
	}
	return 1;
}

SEC("cgroup/getpeername6")
int mesh_peername6(struct bpf_sock_addr *ctx)
{
	const struct mesh_decision *d = peername_decision(ctx);
	const __u32 *word;

	if (d) {
		word = (const __u32 *)d->original_addr;
		ctx->user_ip6[0] = word[0];
		ctx->user_ip6[1] = word[1];
		ctx->user_ip6[2] = word[2];
		ctx->user_ip6[3] = word[3];
		ctx->user_port = bpf_htons(d->original_port);
	}
	return 1;
}

/*
 * MPTCP sockets do not come by the connect hooks: their connect() goes to the subflow's transport behind the back of
 * inet_stream_connect(), which calls them. So a workload of the mesh gets none, as on a kernel without MPTCP; programs fall back to TCP then (Go
 * does by itself).
 */
SEC("cgroup/sock_create")
int mesh_create(struct bpf_sock *ctx)
{
	struct task_struct *task;
	struct mesh_workload *self;
	struct css_set *set;
	__u32 who;

	if (ctx->protocol != MESH_IPPROTO_MPTCP)
		return 1;
	task = (struct task_struct *)bpf_get_current_task_btf();
	set = task->cgroups;
	who = set ? identity_of_cgroup(set->dfl_cgrp) : 0;
	self = bpf_map_lookup_elem(&workloads, &who);
	return !who || !self || self->flags & MESH_WORKLOAD_BYPASS;
}

/* close() of the last file of a socket. */
SEC("cgroup/sock_release")
int mesh_release(struct bpf_sock *ctx)
{
	if (mesh && ctx->protocol == IPPROTO_TCP)
		decided_abandoned(decided_of(true, bpf_sk_storage_get(&connections, ctx, NULL, 0)));
	return 1;
}

#endif
