/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Which socket a TLS connection runs over.
 *
 * Rules
 * (a) A socket call of the thread inside a TLS call: that socket, also when it replaces another (a new epoch then).
 * (b) A read that touched no socket (memory BIO: asyncio, node): the socket that this thread last received from.
 * (c) A write that touched no socket: the next socket that this thread sends to.
 * (b) and (c) only name a connection that has no socket yet: a busy event loop serves others in between.
 */
#ifndef LLMSEC_SOCKETS_H
#define LLMSEC_SOCKETS_H

#define TAP_AF_INET 2
#define TAP_AF_INET6 10
#define TAP_S_IFMT 0170000
#define TAP_S_IFSOCK 0140000

enum socket_answer { TAP_NO_SOCKET = 0, TAP_SOCKET = 1, TAP_SAME_SOCKET = 2 };

/*
 * The facts of an internet socket behind a descriptor of the current task. `known` is the inode of a socket whose facts are at hand
 * already (0: none): the usual case, answered before most of the reading. Inode numbers of sockets are not used twice.
 */
static __always_inline enum socket_answer socket_of(__u32 fd, __u64 known, struct socket_facts *out)
{
	void *task = (void *)bpf_get_current_task(), *files = 0, *table = 0, *file = 0, *inode = 0, *sock = 0, *socket = 0;
	void **slots = 0;
	__u32 max_fds = 0;
	__u16 mode = 0, port = 0;
	unsigned long number = 0;

	KERNEL_READ(files, task, task_struct, files);
	KERNEL_READ(table, files, files_struct, fdt);
	KERNEL_READ(max_fds, table, fdtable, max_fds);
	if (fd >= max_fds)
		return TAP_NO_SOCKET;
	KERNEL_READ(slots, table, fdtable, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	if (!file)
		return TAP_NO_SOCKET;
	KERNEL_READ(inode, file, file, f_inode);
	KERNEL_READ(number, inode, inode, i_ino);
	if (known && number == known)
		return TAP_SAME_SOCKET;
	KERNEL_READ(mode, inode, inode, i_mode);
	if ((mode & TAP_S_IFMT) != TAP_S_IFSOCK)
		return TAP_NO_SOCKET;
	KERNEL_READ(socket, file, file, private_data);
	KERNEL_READ(sock, socket, socket, sk);
	if (!sock)
		return TAP_NO_SOCKET;
	__builtin_memset(out, 0, sizeof(*out));
	out->inode = number;
	KERNEL_READ(out->family, sock, sock_common, skc_family);
	if (out->family == TAP_AF_INET) {
		KERNEL_READ(*(__u32 *)out->local, sock, sock_common, skc_rcv_saddr);
		KERNEL_READ(*(__u32 *)out->remote, sock, sock_common, skc_daddr);
	} else if (out->family == TAP_AF_INET6) {
		KERNEL_READ(out->local, sock, sock_common, skc_v6_rcv_saddr);
		KERNEL_READ(out->remote, sock, sock_common, skc_v6_daddr);
	} else {
		return TAP_NO_SOCKET;
	}
	KERNEL_READ(out->local_port, sock, sock_common, skc_num);
	KERNEL_READ(port, sock, sock_common, skc_dport);
	out->remote_port = __builtin_bswap16(port);
	return TAP_SOCKET;
}

/* The connection's entry, made if this is the first that is seen of it. */
static __always_inline struct connection *connection_of(const struct connection_key *key)
{
	struct connection *known = connections_lookup(key);
	struct connection made = {};

	if (known)
		return known;
	made.epoch_ns = bpf_ktime_get_ns();
	process_name(made.comm);
	connections_update(key, &made);
	return connections_lookup(key);
}

/* End the epoch: tell the final offsets, so that user space sees a loss at the very end too. */
static __always_inline void close_connection(const struct connection_key *key, struct connection *connection)
{
	struct tap_event *event = ring_reserve(sizeof(*event) + TAP_CLASS_SMALL);
	__u64 *payload;

	if (!event) {
		count(TAP_LOST_RECORDS, 1);
		return;
	}
	event_head(event, TAP_CLOSE, key->pid, bpf_ktime_get_ns());
	event_connection(event, key, connection);
	event->length = 16;
	payload = (__u64 *)(event + 1);
	payload[0] = connection->offsets[TAP_READ];
	payload[1] = connection->offsets[TAP_WRITE];
	ring_submit(event, BPF_RB_NO_WAKEUP);
}

static __always_inline void bind_socket(__u32 pid, __u64 pointer, const struct socket_facts *socket, bool may_replace)
{
	struct connection_key key = {.connection = pointer, .pid = pid};
	struct connection *connection = connection_of(&key);
	struct tap_event *event;

	if (!connection || connection->socket.inode == socket->inode)
		return;
	if (connection->socket.inode) {
		if (!may_replace)
			return;
		/* The same object over another socket: another connection, whose first byte this is. */
		close_connection(&key, connection);
		connection->epoch_ns = bpf_ktime_get_ns();
		connection->offsets[0] = connection->offsets[1] = 0;
		connection->lost = 0;
		connection->fresh = 1;
	}
	connection->socket = *socket;
	if (!connection->offsets[0] && !connection->offsets[1])
		return; /* the first data will carry it */
	event = ring_reserve(sizeof(*event) + TAP_CLASS_SMALL);
	if (!event) {
		count(TAP_LOST_RECORDS, 1);
		return;
	}
	event_head(event, TAP_BIND, pid, bpf_ktime_get_ns());
	event_connection(event, &key, connection);
	ring_submit(event, BPF_RB_NO_WAKEUP);
}

/* System calls that move bytes over a descriptor, x86-64. */
static __always_inline int socket_call(long number)
{
	switch (number) {
	case 0:	 /* read */
	case 19: /* readv */
	case 45: /* recvfrom */
	case 47: /* recvmsg */
		return 1;
	case 1:	 /* write */
	case 20: /* writev */
	case 44: /* sendto */
	case 46: /* sendmsg */
		return 2;
	default:
		return 0;
	}
}

static __always_inline void on_socket_call(__u32 fd, bool is_receive)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct thread *thread = threads_lookup(&id);
	struct connection_key key = {.pid = id >> 32};
	struct connection *connection;
	struct socket_facts socket;
	struct thread made = {};
	enum socket_answer found;

	if (thread && thread->depth) {
		key.connection = thread->calls[0].connection;
		connection = connections_lookup(&key);
		found = socket_of(fd, connection && thread->depth == 1 ? connection->socket.inode : 0, &socket);
		if (found == TAP_NO_SOCKET)
			return;
		thread->calls[0].touched_socket = 1;
		if (found == TAP_SAME_SOCKET)
			return;
		bind_socket(id >> 32, thread->calls[0].connection, &socket, true);
		if (thread->depth > 1) {
			thread->calls[1].touched_socket = 1;
			bind_socket(id >> 32, thread->calls[1].connection, &socket, true);
		}
		return;
	}
	if (!is_receive) {
		if (!thread || !thread->unsent || socket_of(fd, 0, &socket) != TAP_SOCKET)
			return;
		bind_socket(id >> 32, thread->unsent, &socket, false);
		thread->unsent = 0;
		return;
	}
	if (socket_of(fd, 0, &socket) != TAP_SOCKET)
		return;
	if (!thread) {
		made.received_fd = fd + 1;
		threads_update(&id, &made);
		return;
	}
	thread->received_fd = fd + 1;
}

#endif
