/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Plain HTTP of observed processes, where their system calls have just moved it over a TCP socket. Linux 6.3 and later.
 *
 * Rules
 * - The tracepoints of sockets run inside the system call, after the bytes were moved: how many is known, and the registers of the
 *   call tell where they stand. No system call of any process is probed for it.
 * - What a socket carries is told by how a call's bytes begin. TLS is left out from then on, and so is a socket of which thousands of
 *   calls did not look like HTTP: a connection that was there before the tap is seen from its next message.
 * - The connection is the socket, not a descriptor: forked and handed-over sockets stay one.
 * - What cannot be read (io_uring, sendfile, splice, sendmmsg) is told as missing by its length.
 */
#ifndef LLMSEC_PLAIN_H
#define LLMSEC_PLAIN_H

#define TAP_SOCK_STREAM 1
#define TAP_TCP_CLOSE 7
#define TAP_SEND_SHUTDOWN 2
#define TAP_SHUTDOWN_BOTH 3
#define TAP_MSG_OOB 0x1
#define TAP_MSG_PEEK 0x2
#define TAP_MSG_TRUNC 0x20
#define TAP_MSG_ERRQUEUE 0x2000
#define TAP_MAX_LOOKS 4096	  /* calls of a socket, before it counts as one without HTTP */
/* Pieces of memory that one call may name (UIO_MAXIOV), and the parts that they are sent in. */
#define TAP_MAX_STEPS (1024 + TAP_MAX_PARTS)
#define TAP_IOVEC_BYTES 16
#define TAP_MSGHDR_IOV 16 /* offset of msg_iov and, behind it, msg_iovlen in struct user_msghdr */

enum beginning {
	BEGINS_OTHER = 0,
	BEGINS_REQUEST,
	BEGINS_CONNECT,
	BEGINS_RESPONSE,
	BEGINS_HTTP2,
	BEGINS_TLS,
};

struct iovec {
	__u64 base;
	__u64 length;
};

struct pieces {
	struct moved moved;
	__u64 next; /* address of the next struct iovec */
	__u32 left; /* how many there are from it on */
};

/* Where the bytes of the system call under way stand. False: they do not stand in the process's memory, or not where it says. */
static __always_inline bool find_pieces(struct pieces *pieces, bool is_receive)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs((struct task_struct *)bpf_get_current_task_btf());
	__u64 header[2];

	/* io_uring's own threads have registers of no call, and its work at the end of a call those of one that is over. */
	if (!IN_SYSTEM_CALL(regs))
		return false;
	switch (SYSTEM_CALL(regs)) {
	case SYS_READ:
	case SYS_RECVFROM:
		if (!is_receive)
			return false;
		goto buffer;
	case SYS_WRITE:
	case SYS_SENDTO:
		if (is_receive)
			return false;
	buffer:
		pieces->moved.buffer = REG_SECOND(regs);
		pieces->moved.segment = pieces->moved.length;
		return true;
	case SYS_READV:
	case SYS_PREADV2:
		if (!is_receive)
			return false;
		goto vector;
	case SYS_WRITEV:
	case SYS_PWRITEV2:
		if (is_receive)
			return false;
	vector:
		pieces->next = REG_SECOND(regs);
		pieces->left = REG_THIRD(regs);
		return true;
	case SYS_SENDMSG:
	case SYS_RECVMSG:
		if (is_receive != (SYSTEM_CALL(regs) == SYS_RECVMSG) ||
		    bpf_probe_read_user(header, sizeof(header), (void *)(REG_SECOND(regs) + TAP_MSGHDR_IOV)))
			return false;
		pieces->next = header[0];
		pieces->left = header[1];
		return true;
	default:
		return false;
	}
}

/* Go on to the next piece of memory; false where there is none that can be read. */
static __always_inline bool next_piece(struct pieces *pieces)
{
	struct iovec piece;

	if (!pieces->left || bpf_probe_read_user(&piece, sizeof(piece), (void *)pieces->next))
		return false;
	pieces->next += TAP_IOVEC_BYTES;
	pieces->left--;
	pieces->moved.buffer = piece.base;
	pieces->moved.segment = piece.length;
	return true;
}

/* A step of bpf_loop(): a part of a piece, or the next piece. */
static long submit_step(__u32 index, struct pieces *pieces)
{
	if (!pieces->moved.segment)
		return !next_piece(pieces);
	return !submit_part(&pieces->moved);
}

#define BEGINS(text, bytes) (!((word ^ *(const __u64 *)(text)) & known & ((bytes) < 8 ? (1ULL << (8 * (bytes))) - 1 : ~0ULL)))

/* What begins with these bytes. Of fewer than four only a socket's first ones are taken for what they may become. */
static __always_inline __u32 what_begins(const struct pieces *pieces, bool is_first)
{
	__u64 size = pieces->moved.segment < pieces->moved.length ? pieces->moved.segment : pieces->moved.length, word = 0, known;

	if (size > 8)
		size = 8;
	if (!size || (size < 4 && !is_first))
		return BEGINS_OTHER;
	asm volatile("" : "+r"(size));
	size &= 15;
	if (size > 8 || bpf_probe_read_user(&word, size, (void *)pieces->moved.buffer))
		return BEGINS_OTHER;
	known = size < 8 ? (1ULL << (8 * size)) - 1 : ~0ULL;
	/* A TLS record: its type, and the major version that all of them have. */
	if ((word & 0xff) >= 0x14 && (word & 0xff) <= 0x17 && (word >> 8 & 0xff) == 3)
		return BEGINS_TLS;
	if (BEGINS("POST \0\0\0", 5) || BEGINS("GET \0\0\0\0", 4) || BEGINS("PUT \0\0\0\0", 4) || BEGINS("HEAD \0\0\0", 5) ||
	    BEGINS("DELETE \0", 7) || BEGINS("PATCH \0\0", 6) || BEGINS("OPTIONS ", 8))
		return BEGINS_REQUEST;
	if (BEGINS("CONNECT ", 8))
		return BEGINS_CONNECT;
	if (BEGINS("HTTP/1.\0", 7))
		return BEGINS_RESPONSE;
	return BEGINS("PRI * HT", 8) ? BEGINS_HTTP2 : BEGINS_OTHER;
}

static __always_inline void end_socket(__u64 pointer, struct plain_socket *socket)
{
	struct connection_key key = {.connection = TAP_PLAIN_SOCKET | socket->inode, .pid = socket->owner};

	if (socket->state == SOCKET_HTTP)
		forget_connection(&key);
	plain_sockets_delete(&pointer);
}

/* From here on this socket costs one look-up a call. */
static __always_inline void leave_out(struct plain_socket *socket)
{
	struct connection_key key = {.connection = TAP_PLAIN_SOCKET | socket->inode, .pid = socket->owner};

	if (socket->state == SOCKET_HTTP)
		forget_connection(&key);
	socket->state = SOCKET_OTHER;
}

/* Bytes that the peer's end has left to be read; its FIN counts as one. */
static __always_inline bool has_unread(struct sock *sock)
{
	__u32 received = 0, read = 0;

	KERNEL_READ(received, sock, tcp_sock, rcv_nxt);
	KERNEL_READ(read, sock, tcp_sock, copied_seq);
	return (__s32)(received - read) > 1;
}

static __always_inline void tell_missing(const struct connection_key *key, struct connection *connection, const struct moved *moved)
{
	void *ring = ring_of(connection);
	struct tap_event *event = ring ? ring_reserve(ring, sizeof(*event) + TAP_CLASS_SMALL) : 0;

	count(TAP_UNREADABLE_CALLS, 1);
	if (!event) {
		count(TAP_LOST_RECORDS, 1);
		connection->lost++;
		return;
	}
	event_head(event, TAP_DATA, key->pid, moved->ts_ns);
	event_connection(event, key, connection);
	event->flags |= TAP_UNREADABLE;
	event->direction = moved->direction;
	event->offset = connection->offsets[moved->direction & 1];
	event->call_length = moved->length;
	ring_submit(event, wake_at_mark(ring));
}

/* `inode` is 0 where the socket is not to be looked at; `flags` are the receiver's. */
static __always_inline void plain_moved(struct sock *sock, __u64 inode, int result, int flags, __u32 direction)
{
	__u64 pointer = (__u64)sock, id = bpf_get_current_pid_tgid();
	struct plain_socket *socket, made = {};
	struct connection_key key = {};
	struct connection *connection;
	struct pieces pieces = {};
	struct thread *thread;
	bool is_readable;
	__u32 begins;

	if (!PLAIN || !inode || result <= 0)
		return;
	socket = plain_sockets_lookup(&pointer);
	if (socket && socket->inode != inode) {
		end_socket(pointer, socket);
		socket = 0;
	}
	if (socket && socket->state == SOCKET_OTHER)
		return;
	if (sock->sk_type != TAP_SOCK_STREAM || flags & (TAP_MSG_OOB | TAP_MSG_PEEK | TAP_MSG_ERRQUEUE))
		return;
	if (!socket) {
		made.inode = inode;
		made.owner = id >> 32;
		plain_sockets_update(&pointer, &made);
		socket = plain_sockets_lookup(&pointer);
		if (!socket)
			return;
	}
	thread = threads_lookup(&id);
	if (thread && thread->depth) { /* what a TLS function sends and receives is not plain */
		leave_out(socket);
		return;
	}
	pieces.moved.length = result;
	pieces.moved.direction = direction;
	is_readable = !(flags & TAP_MSG_TRUNC) && find_pieces(&pieces, direction == TAP_READ);
	if (is_readable && !pieces.moved.segment && next_piece(&pieces) && !pieces.moved.segment)
		next_piece(&pieces); /* one empty piece before the first with bytes */
	if (socket->state == SOCKET_LOOKING) {
		if (!is_readable) {
			if (!socket->is_unseen)
				count(TAP_UNSEEN_SOCKETS, 1);
			socket->is_unseen = 1;
			return;
		}
		begins = what_begins(&pieces, !socket->looked);
		if (begins == BEGINS_OTHER && ++socket->looked < TAP_MAX_LOOKS)
			return;
		if (begins == BEGINS_OTHER || begins == BEGINS_TLS) {
			socket->state = SOCKET_OTHER;
			return;
		}
		socket->state = SOCKET_HTTP;
		socket->is_tunnel = begins == BEGINS_CONNECT;
	} else {
		begins = socket->is_tunnel && is_readable ? what_begins(&pieces, false) : BEGINS_OTHER;
		if (begins == BEGINS_TLS) {
			leave_out(socket);
			return;
		}
	}
	key.connection = TAP_PLAIN_SOCKET | inode;
	key.pid = socket->owner;
	connection = connection_of(&key);
	if (!connection)
		return;
	if (!connection->socket.inode) {
		read_facts(sock, inode, &connection->socket);
		connection->fresh = begins != BEGINS_RESPONSE;
	}
	pieces.moved.key = key;
	pieces.moved.ts_ns = bpf_ktime_get_boot_ns();
	if (is_readable)
		bpf_loop(TAP_MAX_STEPS, submit_step, &pieces, 0);
	else
		tell_missing(&key, connection, &pieces.moved);
	call_done(connection, &pieces.moved);
	count(TAP_PLAIN_CALLS, 1);
	count(TAP_PLAIN_BYTES, result);
	if (socket->over && direction == TAP_READ && !has_unread(sock))
		end_socket(pointer, socket);
}

/*
 * A TCP socket goes over to another state, in whatever context. Ends its connection as the process closes it, or as the peer resets
 * it; what was received before may still be read then.
 */
static __always_inline int socket_changed(struct sock *sock, int state)
{
	__u64 pointer = (__u64)sock;
	struct plain_socket *socket = plain_sockets_lookup(&pointer);
	__u32 shutdown;

	if (!socket)
		return 0;
	shutdown = sock->sk_shutdown & TAP_SHUTDOWN_BOTH;
	if (shutdown == TAP_SHUTDOWN_BOTH && !socket->half_closed) {
		end_socket(pointer, socket);
	} else if (state == TAP_TCP_CLOSE || shutdown == TAP_SHUTDOWN_BOTH) {
		if (has_unread(sock))
			socket->over = 1;
		else
			end_socket(pointer, socket);
	} else if (shutdown == TAP_SEND_SHUTDOWN) {
		socket->half_closed = 1;
	}
	return 0;
}

#endif
