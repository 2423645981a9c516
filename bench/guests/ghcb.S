# SEV-ES loops of VMGEXIT without a #VC handler. Loaded and entered at 0x100000; brings its own page tables: all private
# (C-bit 51) but 2-4 MiB; the GHCB is at 0x200000. +16 u64: which loop, endless.
#   0 GHCB MSR protocol: SEV information; 6 instructions each
#   1 GHCB page: CPUID, answered in the kernel; 11 instructions each
#   2 GHCB page: OUT 0x10, answered by userspace
.intel_syntax noprefix
.code64
.set CBIT, 51
.set GHCB, 0x200000
.macro VMGEXIT
	.byte	0xf3, 0x0f, 0x01, 0xd9
.endm
.globl _start
_start:
	jmp	begin
	.balign	16, 0
which:	.quad	0
begin:
	mov	esp, 0x180000
	lea	rax, [rip + pml4]
	mov	cr3, rax
	cld
	mov	edi, GHCB
	mov	ecx, 512
	xor	eax, eax
	rep	stosq
	mov	word ptr [GHCB + 0xffa], 1
	mov	edi, GHCB
	mov	rax, [rip + which]
	test	eax, eax
	jz	protocol
	mov	ecx, 0xc0010130
	push	rax
	mov	eax, GHCB
	xor	edx, edx
	wrmsr
	pop	rax
	dec	eax
	jz	cpuids

	mov	ebx, 0x00100210		# OUT, 8 bits, 64-bit addresses, port 0x10
1:	mov	qword ptr [rdi + 0x1f8], 0x55
	mov	byte ptr [rdi + 0x3f7], 0x80
	mov	qword ptr [rdi + 0x390], 0x7b
	mov	[rdi + 0x398], rbx
	mov	qword ptr [rdi + 0x3a0], 0
	mov	byte ptr [rdi + 0x3fe], 0x1c
	VMGEXIT
	jmp	1b

cpuids:
	mov	qword ptr [rdi + 0x1f8], 0
	mov	byte ptr [rdi + 0x3f7], 0x80
	mov	qword ptr [rdi + 0x308], 0
	mov	byte ptr [rdi + 0x3fc], 2
	mov	qword ptr [rdi + 0x390], 0x72
	mov	qword ptr [rdi + 0x398], 0
	mov	qword ptr [rdi + 0x3a0], 0
	mov	byte ptr [rdi + 0x3fe], 0x1c
	VMGEXIT
	nop
	jmp	cpuids

protocol:
	mov	ecx, 0xc0010130
	mov	eax, 2
	xor	edx, edx
	wrmsr
	VMGEXIT
	jmp	protocol

	.balign	4096, 0
pml4:	.quad	(1 << CBIT) | 0x100003 + (pdpt - _start)
	.balign	4096, 0
pdpt:	.quad	(1 << CBIT) | 0x100003 + (pd - _start)
	.balign	4096, 0
pd:	.quad	(1 << CBIT) | 0x83
	.quad	0x200083
