/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * Where each machine's calls and system calls keep their arguments. Registers at a probe are the ABI of user programs: the System V
 * psABI of x86-64, AAPCS64 of aarch64; Go's are of its ABIInternal. Numbers of system calls: syscall_64.tbl and asm-generic/unistd.h.
 */
#ifndef LLMSEC_REGISTERS_H
#define LLMSEC_REGISTERS_H

#if defined(__TARGET_ARCH_arm64)

#define REG_FIRST(r) ((r)->regs[0])
#define REG_SECOND(r) ((r)->regs[1])
#define REG_THIRD(r) ((r)->regs[2])
#define REG_FOURTH(r) ((r)->regs[3])
#define REG_RESULT(r) ((r)->regs[0])
/* The return address is in a register, so a call leaves the stack pointer as it was. */
#define STACK_AT_ENTRY(r) ((r)->sp)
#define GO_FIRST(r) ((r)->regs[0])
#define GO_SECOND(r) ((r)->regs[1])
#define GO_RESULT(r) ((r)->regs[0])
#define GO_GOROUTINE(r) ((r)->regs[28])

#define SYSTEM_CALL(r) ((long)(r)->syscallno)
/* The first argument stays in its register until the result takes its place. */
#define IN_SYSTEM_CALL(r) ((r)->sp && (r)->syscallno >= 0 && (r)->regs[0] == (r)->orig_x0)

enum {
	SYS_READ = 63,
	SYS_WRITE = 64,
	SYS_READV = 65,
	SYS_WRITEV = 66,
	SYS_SENDTO = 206,
	SYS_RECVFROM = 207,
	SYS_SENDMSG = 211,
	SYS_RECVMSG = 212,
	SYS_PREADV2 = 286,
	SYS_PWRITEV2 = 287,
};

#else

#define REG_FIRST(r) ((r)->di)
#define REG_SECOND(r) ((r)->si)
#define REG_THIRD(r) ((r)->dx)
#define REG_FOURTH(r) ((r)->cx)
#define REG_RESULT(r) ((r)->ax)
#define STACK_AT_ENTRY(r) ((r)->sp - 8) /* of a function that has just returned: its return address is gone */
#define GO_FIRST(r) ((r)->ax)
#define GO_SECOND(r) ((r)->bx)
#define GO_RESULT(r) ((r)->ax)
#define GO_GOROUTINE(r) ((r)->r14)

#define SYSTEM_CALL(r) ((long)(r)->orig_ax)
/* -ENOSYS: what the kernel keeps as the result until there is one. */
#define IN_SYSTEM_CALL(r) ((r)->sp && (long)(r)->ax == -38L)

enum {
	SYS_READ = 0,
	SYS_WRITE = 1,
	SYS_READV = 19,
	SYS_WRITEV = 20,
	SYS_SENDTO = 44,
	SYS_RECVFROM = 45,
	SYS_SENDMSG = 46,
	SYS_RECVMSG = 47,
	SYS_PREADV2 = 327,
	SYS_PWRITEV2 = 328,
};

#endif
#endif
