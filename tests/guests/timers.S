# One interrupt of a timer at every boundary of a loop, for tests/vmm/timer-boundaries.test.ts. The word at +8 says whose: 0 local
# APIC, 1 its TSC deadline, 2 PIT through the PIC, 3 PIT through the I/O APIC, 4 HPET through the I/O APIC. The delay between arming
# and the loop goes from 1200 to 3300 instructions; each time the loop's result is compared with that of an undisturbed run.
# Then it prints: interrupts within the loop, most in one run, wrong results, and the offsets of the instructions before which one came.
# At +16: the places of the loop, of the table of its instructions (offset, 1 = an interrupt may come before it), and of its end.
.intel_syntax noprefix
.code64
.globl _start
.set SOURCE, 0x200000
.set DATA, 0x203000		# ends a page later
.set SAVED, 0x206000
.set WANTED, 0x206800
.set IDT, 0x208000
.set MET, 0x20a000
.set APIC, 0xfee00000
.set IOAPIC, 0xfec00000
.set HPET, 0xfed00000
.macro I kind
777:	.text 1
	.long	777b - body, \kind
	.text 0
.endm
.text 1
table:
.text 0
_start:
	jmp	start
	.org	8
source:	.long	0
	.org	16
	.long	body, table, table_end
start:
	lea	rsp, [rip + _start]
	mov	edi, IDT
	mov	ecx, 1024
	xor	eax, eax
	rep stosd
	lea	rax, [rip + handler]
	mov	edi, IDT + 0x20 * 16
	call	set_gate
	mov	edi, IDT + 0x40 * 16
	call	set_gate
	lea	rax, [rip + spurious]
	mov	edi, IDT + 0x27 * 16
	call	set_gate
	mov	edi, IDT + 0xff * 16
	call	set_gate
	lidt	[rip + idtr]
	mov	r14d, [rip + source]
	# Local APIC: on, timer one-shot or TSC deadline, divider 1. LINT0 lets the PIC in only for source 2.
	mov	ebx, APIC
	mov	dword ptr [rbx + 0xf0], 0x1ff
	mov	dword ptr [rbx + 0x3e0], 0xb
	mov	dword ptr [rbx + 0x350], 0x10700
	mov	dword ptr [rbx + 0x320], 0x10040
	mov	al, 0xff
	out	0x21, al
	out	0xa1, al
	cmp	r14d, 0
	jne	1f
	mov	dword ptr [rbx + 0x320], 0x40
1:	cmp	r14d, 1
	jne	1f
	mov	dword ptr [rbx + 0x320], 0x40040
	mfence
1:	cmp	r14d, 2
	jne	1f
	mov	dword ptr [rbx + 0x350], 0x700
	mov	al, 0x11
	out	0x20, al
	mov	al, 0x20
	out	0x21, al
	mov	al, 4
	out	0x21, al
	mov	al, 1
	out	0x21, al
	mov	al, 0xfe
	out	0x21, al
1:	mov	ebx, IOAPIC
	cmp	r14d, 3
	jne	1f
	mov	dword ptr [rbx], 0x10 + 2 * 0
	mov	dword ptr [rbx + 0x10], 0x40
	mov	dword ptr [rbx], 0x10 + 2 * 2
	mov	dword ptr [rbx + 0x10], 0x40
1:	cmp	r14d, 4
	jne	1f
	mov	dword ptr [rbx], 0x10 + 2 * 20
	mov	dword ptr [rbx + 0x10], 0x40
	mov	ebx, HPET
	mov	dword ptr [rbx + 0x10], 1
1:	xor	r12d, r12d		# in the loop
	xor	r13d, r13d		# interrupts of this run
	xor	r15d, r15d		# of all
	mov	dword ptr [rip + most], 0
	mov	dword ptr [rip + wrong], 0
	# The undisturbed run.
	mov	r11d, 1
	call	run
	mov	esi, SAVED
	mov	edi, WANTED
	mov	ecx, 64
	rep movsq
	mov	r10d, 1200
sweep:
	call	arm
	mov	r11d, r10d
	xor	r13d, r13d
	call	run
	call	disarm
	add	r15d, r13d
	cmp	r13d, [rip + most]
	jbe	1f
	mov	[rip + most], r13d
1:	mov	esi, SAVED
	mov	edi, WANTED
	mov	ecx, 64
	repe cmpsq
	je	1f
	inc	dword ptr [rip + wrong]
1:	inc	r10d
	cmp	r10d, 3300
	jbe	sweep
	cmp	r14d, 4
	jne	1f
	mov	r10d, 2400
	inc	dword ptr [rip + pass]
	cmp	dword ptr [rip + pass], 10
	jb	sweep
1:	mov	eax, r15d
	call	print
	mov	eax, [rip + most]
	call	print
	mov	eax, [rip + wrong]
	call	print
	xor	r9d, r9d
1:	bt	dword ptr [MET], r9d
	jnc	2f
	mov	eax, r9d
	call	print
2:	inc	r9d
	cmp	r9d, 512
	jb	1b
	xor	eax, eax
	out	0xf4, eax
	hlt

# R11 instructions of delay, then the loop on fresh data; registers, flags and data go to SAVED.
run:
	push	r10
	push	r11
	mov	edi, SOURCE
	mov	ecx, 0x1000		# 0x200000..0x207fff but what is kept
	xor	eax, eax
	mov	edi, DATA
	mov	ecx, 0x400
	rep stosd
	mov	edi, SOURCE
	mov	ecx, 16
	mov	rax, 0x9e3779b97f4a7c15
1:	stosq
	imul	rax, rax, 0x19660d
	loop	1b
	mov	eax, 0x12345678
	mov	ebx, 7
	mov	edx, 9
	mov	r8d, 11
	mov	r9d, 13
	mov	ebp, 3
	mov	ecx, r11d
	xor	r11d, r11d
	xor	r10d, r10d
	sti
1:	loop	1b
	mov	r12d, 1
body:
	I 1
	mov	ecx, 5
	I 1
	mov	esi, SOURCE
	I 1
	mov	edi, DATA + 0xffc
	I 1
	rep movsb			# across the page edge
	I 1
	mov	[DATA + 0xffe], rax
	I 1
	add	eax, 0x81234567
	I 1
	adc	[DATA + 0xffd], rax
	I 1
	mov	dx, ss
	I 1
	mov	ss, dx
	I 0
	add	word ptr [DATA + 0x10], 3
	I 1
	cli
	I 0
	inc	word ptr [DATA + 0x20]
	I 0
	sti
	I 0
	inc	word ptr [DATA + 0x22]
	I 1
	lock xadd	[DATA + 0xffb], r8
	I 1
	push	rax
	I 1
	pop	r9
	I 1
	call	1f
	I 1
	cmp	ebp, 2
	I 1
	cmovb	r10d, ebp
	I 1
	sti				# IF is set: no shadow
	I 1
	pushfq
	I 1
	popfq
	I 1
	dec	ebp
	I 1
	jnz	body
	I 1
	jmp	2f
1:	I 1
	rol	rax, 3
	I 1
	ret
2:	I 1
	cli
	mov	r12d, 0
	pushfq
	mov	[SAVED], rax
	mov	[SAVED + 8], rbx
	mov	[SAVED + 16], rcx
	mov	[SAVED + 24], rdx
	mov	[SAVED + 32], rsi
	mov	[SAVED + 40], rdi
	mov	[SAVED + 48], rbp
	mov	[SAVED + 56], r8
	mov	[SAVED + 64], r9
	mov	[SAVED + 72], r10
	mov	[SAVED + 80], rsp
	pop	rax
	mov	[SAVED + 88], rax
	mov	esi, DATA
	mov	edi, SAVED + 0x80
	mov	ecx, 8
	rep movsq
	mov	esi, DATA + 0xfe0
	mov	ecx, 8
	rep movsq
	pop	r11
	pop	r10
	ret

arm:
	cmp	r14d, 1
	je	2f
	ja	3f
	mov	eax, APIC
	mov	dword ptr [rax + 0x380], 3000
	ret
2:	rdtsc
	shl	rdx, 32
	or	rax, rdx
	add	rax, 6000
	mov	rdx, rax
	shr	rdx, 32
	mov	ecx, 0x6e0
	wrmsr
	ret
3:	cmp	r14d, 4
	je	4f
	mov	al, 0x30			# channel 0, mode 0
	out	0x43, al
	mov	al, 3
	out	0x40, al
	xor	eax, eax
	out	0x40, al
	ret
4:	mov	ecx, [rip + pass]	# its ticks are 10 ns: other phases meet other instructions
	inc	ecx
5:	loop	5b
	mov	ebx, HPET
	mov	rax, [rbx + 0xf0]
	add	rax, 500		# the accesses that follow take 2 us of them
	mov	[rbx + 0x108], rax
	mov	dword ptr [rbx + 0x100], (20 << 9) | 4
	ret

# Nothing more comes: stops the source, and lets in what waits, outside of the loop.
disarm:
	cmp	r14d, 0
	jne	1f
	mov	eax, APIC
	mov	dword ptr [rax + 0x380], 0
1:	cmp	r14d, 1
	jne	1f
	xor	eax, eax
	xor	edx, edx
	mov	ecx, 0x6e0
	wrmsr
1:	cmp	r14d, 4
	jne	1f
	mov	ebx, HPET
	mov	dword ptr [rbx + 0x100], 20 << 9
1:	lea	eax, [r14 - 2]
	cmp	eax, 1
	ja	1f
	mov	ecx, 6000
2:	loop	2b			# a PIT's count of 3 is over by then
1:	sti
	nop
	nop
	cli
	ret

handler:
	push	rax
	test	r12d, r12d
	jz	1f
	inc	r13d
	mov	rax, [rsp + 8]
	push	rbx
	lea	rbx, [rip + body]
	sub	rax, rbx
	pop	rbx
	bts	dword ptr [MET], eax
1:	cmp	r14d, 2
	je	1f
	mov	eax, APIC
	mov	dword ptr [rax + 0xb0], 0
	pop	rax
	iretq
1:	mov	al, 0x20
	out	0x20, al
	pop	rax
	iretq
spurious:
	iretq

set_gate:
	mov	[rdi], ax
	mov	word ptr [rdi + 2], cs
	mov	word ptr [rdi + 4], 0x8e00
	mov	rdx, rax
	shr	rdx, 16
	mov	[rdi + 6], dx
	shr	rdx, 16
	mov	[rdi + 8], edx
	ret

# EAX in hexadecimal, and a line feed.
print:
	mov	ecx, 8
	mov	ebx, eax
	mov	dx, 0x3f8
1:	rol	ebx, 4
	mov	al, bl
	and	al, 15
	add	al, '0'
	cmp	al, '9'
	jbe	2f
	add	al, 'a' - '0' - 10
2:	out	dx, al
	loop	1b
	mov	al, 10
	out	dx, al
	ret

idtr:	.word	0xfff
	.quad	IDT
most:	.long	0
wrong:	.long	0
pass:	.long	0
.text 1
table_end:
