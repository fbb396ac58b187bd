/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
#ifndef SIDELIGHT_CONNECT_H
#define SIDELIGHT_CONNECT_H

#include "../lib/connection.h"

/* Both always allow: 1 lets the connect go on. */

SEC("cgroup/connect4")
int mesh_connect4(struct bpf_sock_addr *ctx)
{
	connection_called(ctx);
	return 1;
}

SEC("cgroup/connect6")
int mesh_connect6(struct bpf_sock_addr *ctx)
{
	connection_called(ctx);
	return 1;
}

#endif
