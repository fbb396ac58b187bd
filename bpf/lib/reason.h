/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_REASON_H
#define SIDELIGHT_REASON_H

#include <linux/errno.h>

#include "../abi.h"
#include "../kernel.h"

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
 * Why a socket reached TCP_CLOSE. sk_err is set before the state on every path that has an error to tell (tcp_reset,
 * tcp_write_err, tcp_abort), but not on those where the local process ends the connection: tcp_disconnect() and the
 * unread-data branch of __tcp_close() change the state first and send the RST after. The state it left tells those apart:
 * an orderly close leaves by LAST_ACK, CLOSING or FIN_WAIT2.
 */
static __always_inline __u8 reason_of_close(bool established, __u8 old_state, __u32 err, unsigned long sk_flags)
{
	if (err)
		return reason_of_errno(err);
	if (!established)
		return MESH_ABORTED;
	switch (old_state) {
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
	case BPF_TCP_TIME_WAIT:
		return MESH_OK;
	case BPF_TCP_FIN_WAIT2:
		/* To TIME_WAIT, by the peer's FIN or as an orphan; close() with unread data is neither yet. */
		if (sk_flags & (1UL << SOCK_DONE | 1UL << SOCK_DEAD))
			return MESH_OK;
	}
	return MESH_RESET_BY_LOCAL;
}

#endif
