/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_ITER_H
#define SIDELIGHT_ITER_H

#include "../lib/owner.h"
#include "../maps.h"

/*
 * Run once, after the other programs are attached, over every open file of every process: a socket that listened before us gets
 * the state that TCP_LISTEN_CB would have given it. Of the processes that share a listener the first in the table wins, which is
 * the oldest unless pids have wrapped: nginx's master, not a worker, as with listen() itself.
 *
 * Not reached: a listener by MPTCP. Its file leads to the MPTCP socket, and from there no typed pointer leads to the TCP socket that
 * listens. What it accepts has no process until the server listens anew.
 */
SEC("iter/task_file")
int mesh_adopt_listeners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct mesh_connection *conn;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || sk->__sk_common.skc_state != BPF_TCP_LISTEN || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	conn = bpf_sk_storage_get(&connections, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (conn && !conn->event.owner.pid)
		owner_from_task(&conn->event.owner, task);
	return 0;
}

#endif
