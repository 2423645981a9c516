#!/usr/bin/env node
/** The command `cloister`. */
import { setFlagsFromString } from 'node:v8'
import { main } from './cli/main.ts'

// V8 11 (Node 20) gives functions as large as the execution loop a register allocator that keeps nothing in registers from one
// instruction to the next: 380 MIPS instead of 540 (bench/guests/loops.S, sieve). Other versions may not know the option.
if (process.versions.v8?.startsWith('11.')) setFlagsFromString('--no-turbo-use-mid-tier-regalloc-for-huge-functions')

void main(process.argv.slice(2))
