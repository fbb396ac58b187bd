/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_REASON_H
#define SIDELIGHT_REASON_H

#include <linux/errno.h>

#include "../kernel.h"
#include "../maps.h"

static __always_inline __u8 reason_of_errno(__u32 err)
{
	switch (err) {
	case ECONNREFUSED:
		return MESH_REFUSED;
	case ECONNRESET:
	case EPIPE: /* tcp_reset() in CLOSE_WAIT */
		return MESH_RESET_BY_PEER;
	case ECONNABORTED: /* tcp_abort(): ss -K, bpf_sock_destroy */
		return MESH_RESET_BY_LOCAL;
	case ETIMEDOUT:
		return MESH_TIMEOUT;
	case EHOSTUNREACH:
	case ENETUNREACH:
	case EHOSTDOWN:
	case ENETDOWN:
	case ENONET:
		return MESH_UNREACHABLE;
	case EPERM:
	case EACCES:
		return MESH_DENIED;
	}
	return MESH_OTHER;
}

/*
 * A process that closed while data was on its way: its kernel resets the peer, and says ECONNRESET as if the peer had done it
 * (tcp_rcv_state_process, TCPAbortOnData). A segment with payload came since the FIN, and none of it was received.
 */
static __always_inline bool reason_is_abort_on_data(const struct mesh_connection *conn, struct tcp_sock *tp)
{
	return conn->fin_data_segs && tp->inet_conn.icsk_inet.sk.sk_shutdown & RCV_SHUTDOWN &&
	       tp->data_segs_in != conn->fin_data_segs - 1 && (__u32)tp->bytes_received == conn->fin_received;
}

/*
 * Why a socket reached TCP_CLOSE. sk_err is set before the state on every path that has an error to tell (tcp_reset,
 * tcp_write_err, tcp_abort), but not on those where the local process or the kernel ends the connection by a reset of its own:
 * tcp_disconnect(), the unread-data branch of __tcp_close(), tcp_out_of_resources().
 */
static __always_inline __u8 reason_of_close(const struct mesh_connection *conn, struct tcp_sock *tp, bool established,
					    __u8 old_state)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	unsigned long sk_flags = sk->__sk_common.skc_flags;
	__u32 err = sk->sk_err;

	/*
	 * First what leaves no doubt: both FINs are there and ours is acknowledged. An error can stand in sk_err all the same, from an
	 * ICMP message that the process asked for (IP_RECVERR) and did not read.
	 */
	switch (old_state) {
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		if (tp->snd_una == tp->write_seq)
			return MESH_OK;
		break;
	case BPF_TCP_FIN_WAIT2:
		if (sk_flags & 1UL << SOCK_DONE)
			return MESH_OK;
	}
	if (err == ECONNRESET && conn && reason_is_abort_on_data(conn, tp))
		return MESH_RESET_BY_LOCAL;
	if (err)
		return reason_of_errno(err);
	if (!established)
		return MESH_ABORTED;
	/* To TIME_WAIT as an orphan, unless TCP_LINGER2 forbids it; close() with unread data makes the orphan later. */
	if (old_state == BPF_TCP_FIN_WAIT2 && sk_flags & 1UL << SOCK_DEAD && tp->linger2 >= 0)
		return MESH_OK;
	return MESH_RESET_BY_LOCAL;
}

#endif
