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

/* The socket (struct sock) behind a descriptor of the current task; 0: none. */
static __always_inline void *sock_of_descriptor(__u32 fd)
{
	void *task = (void *)bpf_get_current_task(), *files = 0, *table = 0, *file = 0, *inode = 0, *sock = 0, *socket = 0;
	void **slots = 0;
	__u32 max_fds = 0;
	__u16 mode = 0;

	KERNEL_READ(files, task, task_struct, files);
	KERNEL_READ(table, files, files_struct, fdt);
	KERNEL_READ(max_fds, table, fdtable, max_fds);
	if (fd >= max_fds)
		return 0;
	KERNEL_READ(slots, table, fdtable, fd);
	bpf_probe_read_kernel(&file, sizeof(file), slots + fd);
	if (!file)
		return 0;
	KERNEL_READ(inode, file, file, f_inode);
	KERNEL_READ(mode, inode, inode, i_mode);
	if ((mode & TAP_S_IFMT) != TAP_S_IFSOCK)
		return 0;
	KERNEL_READ(socket, file, file, private_data);
	KERNEL_READ(sock, socket, socket, sk);
	return sock;
}

/* The inode of an internet socket, which no other socket gets again; 0: another family, or no socket any more. */
static __always_inline __u64 inode_of(void *sock)
{
	void *socket = 0, *file = 0, *inode = 0;
	unsigned long number = 0;
	__u16 family = 0;

	KERNEL_READ(family, sock, sock_common, skc_family);
	if (family != TAP_AF_INET && family != TAP_AF_INET6)
		return 0;
	KERNEL_READ(socket, sock, sock, sk_socket);
	KERNEL_READ(file, socket, socket, file);
	KERNEL_READ(inode, file, file, f_inode);
	KERNEL_READ(number, inode, inode, i_ino);
	return number;
}

static __always_inline void read_facts(void *sock, __u64 inode, struct socket_facts *out)
{
	__u16 port = 0;

	__builtin_memset(out, 0, sizeof(*out));
	out->inode = inode;
	KERNEL_READ(out->family, sock, sock_common, skc_family);
	if (out->family == TAP_AF_INET) {
		KERNEL_READ(*(__u32 *)out->local, sock, sock_common, skc_rcv_saddr);
		KERNEL_READ(*(__u32 *)out->remote, sock, sock_common, skc_daddr);
	} else {
		KERNEL_READ(out->local, sock, sock_common, skc_v6_rcv_saddr);
		KERNEL_READ(out->remote, sock, sock_common, skc_v6_daddr);
	}
	KERNEL_READ(out->local_port, sock, sock_common, skc_num);
	KERNEL_READ(port, sock, sock_common, skc_dport);
	out->remote_port = __builtin_bswap16(port);
}

static __always_inline struct thread *new_thread(__u64 *id)
{
	struct thread made = {};

	threads_update(id, &made);
	return threads_lookup(id);
}

/* The connection's entry, made if this is the first that is seen of it. */
static __always_inline struct connection *connection_of(const struct connection_key *key)
{
	struct connection *known = connections_lookup(key);
	struct connection made = {};

	if (known && !known->ended)
		return known;
	/* The reader that was not told of the end of one sees it by the beginning of the next. */
	if (known) {
		made.ring = known->ring;
		made.owes = 1;
	}
	made.epoch_ns = bpf_ktime_get_boot_ns();
	process_name(made.comm);
	connections_update(key, &made);
	return connections_lookup(key);
}

/* End the epoch: tell the final offsets, so that user space sees a loss at the very end too. False where there was no room. */
static __always_inline bool close_connection(const struct connection_key *key, struct connection *connection)
{
	void *ring = ring_of(connection);
	struct tap_event *event;
	__u64 *payload;

	if (!ring)
		return false;
	event = ring_reserve(ring, sizeof(*event) + TAP_CLASS_SMALL);
	if (!event) {
		count(TAP_LOST_RECORDS, 1);
		return false;
	}
	event_head(event, TAP_CLOSE, key->pid, bpf_ktime_get_boot_ns());
	event_connection(event, key, connection);
	event->length = 16;
	payload = (__u64 *)(event + 1);
	payload[0] = connection->offsets[TAP_READ];
	payload[1] = connection->offsets[TAP_WRITE];
	ring_submit(event, BPF_RB_NO_WAKEUP);
	return true;
}

/* Whether its reader knows of all ends of this object's connections; where nothing came of one, there is nothing to tell. */
static __always_inline bool end_connection(const struct connection_key *key, struct connection *connection)
{
	if (connection->ended)
		return false;
	if (connection->offsets[0] || connection->offsets[1])
		return close_connection(key, connection);
	return !connection->owes;
}

static __always_inline void forget_connection(const struct connection_key *key)
{
	struct connection *connection = connections_lookup(key);

	if (!connection || connection->ended)
		return;
	if (end_connection(key, connection))
		connections_delete(key);
	else
		connection->ended = 1;
}

/* `inode` is that of `sock`; the usual case, a connection that has this socket already, is answered by it alone. */
static __always_inline void bind_socket(__u32 pid, __u64 pointer, void *sock, __u64 inode, bool may_replace)
{
	struct connection_key key = {.connection = pointer, .pid = pid};
	struct connection *connection = connection_of(&key);
	struct socket_facts facts;
	struct tap_event *event;
	void *ring;

	if (!connection || connection->socket.inode == inode)
		return;
	if (connection->socket.inode) {
		if (!may_replace)
			return;
		/* The same object over another socket: another connection, whose first byte this is. */
		close_connection(&key, connection);
		connection->epoch_ns = bpf_ktime_get_boot_ns();
		connection->offsets[0] = connection->offsets[1] = 0;
		connection->lost = 0;
		connection->fresh = 1;
	}
	read_facts(sock, inode, &facts);
	connection->socket = facts;
	if (!connection->offsets[0] && !connection->offsets[1])
		return; /* the first data will carry it */
	ring = ring_of(connection);
	if (!ring)
		return;
	event = ring_reserve(ring, sizeof(*event) + TAP_CLASS_SMALL);
	if (!event) {
		count(TAP_LOST_RECORDS, 1);
		return;
	}
	event_head(event, TAP_BIND, pid, bpf_ktime_get_boot_ns());
	event_connection(event, &key, connection);
	ring_submit(event, BPF_RB_NO_WAKEUP);
}

/* A watched thread moves bytes over an internet socket. */
static __always_inline void on_socket_call(void *sock, __u64 inode, bool is_receive)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct thread *thread = threads_lookup(&id);

	if (thread && thread->depth) {
		thread->calls[0].touched_socket = 1;
		bind_socket(id >> 32, thread->calls[0].connection, sock, inode, true);
		if (thread->depth > 1) {
			thread->calls[1].touched_socket = 1;
			bind_socket(id >> 32, thread->calls[1].connection, sock, inode, true);
		}
	} else if (is_receive) {
		if (!thread) {
			thread = new_thread(&id);
			if (!thread)
				return;
		}
		thread->received_sock = (__u64)sock;
		thread->received_inode = inode;
	} else if (thread && thread->unsent) {
		bind_socket(id >> 32, thread->unsent, sock, inode, false);
		thread->unsent = 0;
	}
}

/*
 * Linux 6.3 and later: sockets tell of themselves, and system calls pay nothing. Runs after the bytes were moved, or were not.
 * Returns the socket's inode where it is an internet socket of a watched process.
 */
static __always_inline __u64 socket_moved(struct sock *sock, int result, bool is_receive)
{
	__u32 pid = bpf_get_current_pid_tgid() >> 32;
	__u64 inode;

	if (!is_watched(pid))
		return 0;
	if (is_receive && result <= 0)
		return 0;
	inode = TRUSTED_INODE(sock);
	if (inode)
		on_socket_call(sock, inode, is_receive);
	return inode;
}

/* System calls that move bytes over a descriptor, x86-64. */
static __always_inline int socket_call(long number)
{
	switch (number) {
	case SYS_READ:
	case SYS_READV:
	case SYS_RECVFROM:
	case SYS_RECVMSG:
		return 1;
	case SYS_WRITE:
	case SYS_WRITEV:
	case SYS_SENDTO:
	case SYS_SENDMSG:
		return 2;
	default:
		return 0;
	}
}

/* Before Linux 6.3: every system call of the host comes by here, as it begins. */
static __always_inline int system_call(struct pt_regs *regs, long number)
{
	int kind = socket_call(number);
	unsigned long descriptor = 0;
	__u64 inode;
	void *sock;

	if (!kind || !is_watched(bpf_get_current_pid_tgid() >> 32))
		return 0;
	bpf_probe_read_kernel(&descriptor, sizeof(descriptor), &REG_FIRST(regs));
	sock = sock_of_descriptor(descriptor);
	inode = sock ? inode_of(sock) : 0;
	if (inode)
		on_socket_call(sock, inode, kind == 1);
	return 0;
}

#endif
