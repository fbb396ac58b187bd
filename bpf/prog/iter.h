/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_ITER_H
#define SIDELIGHT_ITER_H

#include "../lib/adopt.h"
#include "../lib/cut.h"
#include "../lib/totals.h"
#include "../maps.h"

/*
 * Run once, after the other programs are attached, over every open file of every process: a TCP socket from before us gets the state
 * that holds its process. Of the processes that share a socket the first in the table wins, which is the oldest unless pids have
 * wrapped: nginx's master, not a worker, as with listen() itself.
 *
 * Not reached: a listener by MPTCP. Its file leads to the MPTCP socket, and from there no typed pointer leads to the TCP socket that
 * listens. What it accepts has no process until the server listens anew. Nor an accepted socket that nobody took from the queue.
 */
SEC("iter/task_file")
int mesh_adopt_owners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (sk && sk->sk_protocol == IPPROTO_TCP && cgroup_is_ours(sk))
		adopt_owner(sk, task);
	if (mesh && sk && sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == BPF_TCP_LISTEN && cgroup_is_ours(sk))
		adopt_listener(sk);
	return 0;
}

/*
 * Run once after that, in each network namespace: connections that are there already. It holds the socket's lock
 * (bpf_iter_tcp_seq_show), so nothing happens to a connection meanwhile.
 */
SEC("iter/tcp")
int mesh_adopt(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;

	if (!skc)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc); /* not a request, nor a TIME_WAIT */
	if (tp && cgroup_is_ours(&tp->inet_conn.icsk_inet.sk))
		adopt_connection(tp);
	return 0;
}

/* Run in each network namespace when policies changed, or a backend has drained for long enough. It holds the socket's lock, as mesh_adopt does. */
SEC("iter/tcp")
int mesh_cut(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct tcp_sock *tp;

	if (!mesh || !skc || !bpf_sock_destroy)
		return 0;
	tp = bpf_skc_to_tcp_sock(skc);
	if (tp && cgroup_is_ours(&tp->inet_conn.icsk_inet.sk))
		cut_connection(skc, tp);
	return 0;
}

/* Whether to tell of sockets of which there is nothing new. Set by user space before a sweep: it then knows which are gone. */
volatile __u32 sweep_all;

/* Takes over what was reported, unless somebody else just did, or the close has told all. */
#define sweep_report(out, field, all)                                                                                      \
	do {                                                                                                               \
		__typeof__(out.field) before_ = *(volatile __typeof__(out.field) *)&conn->reported_##field;                \
		if (before_ != all && __sync_val_compare_and_swap(&conn->reported_##field, before_, out.field) == before_) \
			out.reported_##field = before_;                                                                    \
		else                                                                                                       \
			out.reported_##field = out.field;                                                                  \
	} while (0)

/* A connect that is under way is always told: it has an age. */
static __always_inline bool sweep_is_quiet(const struct mesh_connection *conn, const struct mesh_close_event *out, __u32 tells)
{
	return out->event.established_ns && (conn->told & tells) == tells && out->sent_bytes == conn->reported_sent_bytes &&
	       out->received_bytes == conn->reported_received_bytes && out->retransmits == conn->reported_retransmits &&
	       out->syn_retransmits == conn->reported_syn_retransmits;
}

/*
 * Run once a report interval over the sockets that have state, in all network namespaces: what they have moved so far, and what
 * lost events should have told of them. It holds no socket's lock; told and reported are atomics for that reason.
 *
 * Each read of the iterator goes on where the last one ended by counting sockets from the beginning, of its half or so of all (the
 * map has as many buckets as there are CPUs). So a record that is not written saves more than its writing.
 */
SEC("iter/bpf_sk_storage_map")
int mesh_sweep(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct seq_file *seq = ctx->meta->seq;
	struct mesh_told_close record;
	struct mesh_connection *conn;
	__u32 size = sizeof(record.close);
	struct sock *sk = ctx->sk;
	struct tcp_sock *tp;
	__u32 tells = 0;

	if (!sk || !ctx->value)
		return 0;
	/* The same value, but typed as a map's: atomics need that. */
	conn = bpf_sk_storage_get(&connections, sk, NULL, 0);
	if (!conn || (conn->phase != MESH_CONNECTING && conn->phase != MESH_OPEN))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	record.close.event = conn->event;
	record.close.event.kind = MESH_SWEEP;
	record.close.event.event_ns = bpf_ktime_get_ns();
	record.close.sk_err = 0;
	record.close.reserved = 0;
	record.close.event.told = 0;
	record.close.reported_sent_bytes = 0;
	record.close.reported_received_bytes = 0;
	record.close.reported_retransmits = 0;
	record.close.reported_syn_retransmits = 0;
	record.close.first_sent_ns = conn->first_sent_ns;
	record.close.first_received_ns = conn->first_received_ns;
	record.close.syn_retransmits = conn->syn_retransmits;
	totals_read(&record.close, tp, sk->__sk_common.skc_state);
	if (record.close.event.role == MESH_CLIENT)
		tells |= MESH_TOLD_ATTEMPT;
	if (record.close.event.established_ns)
		tells |= MESH_TOLD_ESTABLISHED;
	if (!sweep_all && sweep_is_quiet(conn, &record.close, tells))
		return 0;
	/*
	 * seq_write() takes what is smaller than the room left. Without room this socket comes again with the next read, and what is
	 * written now is thrown away: then nothing may have been taken over as told.
	 */
	if (mesh && record.close.event.flags & MESH_DECIDED) {
		record.decision = decided_room(conn)->decision;
		size = sizeof(record);
	}
	if (seq->count + size >= seq->size) {
		bpf_seq_write(seq, &record, size);
		return 0;
	}
	record.close.event.told = __sync_fetch_and_or(&conn->told, tells);
	if (record.close.event.told & MESH_TOLD_END)
		return 0;
	sweep_report(record.close, sent_bytes, MESH_REPORTED_ALL);
	sweep_report(record.close, received_bytes, MESH_REPORTED_ALL);
	sweep_report(record.close, retransmits, MESH_REPORTED_ALL_32);
	sweep_report(record.close, syn_retransmits, MESH_REPORTED_ALL_32);
	bpf_seq_write(seq, &record, size);
	return 0;
}

#endif
