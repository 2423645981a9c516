/**
 * vCPU types by QEMU's names (target/i386/cpu.c). What a launch measures of the type is the signature CPUID(1).EAX,
 * which the initial VMSA holds in RDX.
 */
import { CloisterError } from '../errors.ts'

/** CPUID(1).EAX from family, model and stepping (APM vol 3, Fn0000_0001_EAX). */
export function signature(family: number, model: number, stepping: number): number {
  const base = Math.min(family, 15)
  return ((family - base) << 20) | ((model >> 4) << 16) | (base << 8) | ((model & 15) << 4) | stepping
}

const naples = signature(23, 1, 2)
const rome = signature(23, 49, 0)
const milan = signature(25, 1, 1)
const genoa = signature(25, 17, 0)
const turin = signature(26, 0, 0)

export const vcpuTypes: Readonly<Record<string, number>> = {
  EPYC: naples,
  'EPYC-v1': naples,
  'EPYC-v2': naples,
  'EPYC-IBPB': naples,
  'EPYC-v3': naples,
  'EPYC-v4': naples,
  'EPYC-v5': naples,
  'EPYC-Rome': rome,
  'EPYC-Rome-v1': rome,
  'EPYC-Rome-v2': rome,
  'EPYC-Rome-v3': rome,
  'EPYC-Rome-v4': rome,
  'EPYC-Rome-v5': rome,
  'EPYC-Milan': milan,
  'EPYC-Milan-v1': milan,
  'EPYC-Milan-v2': milan,
  'EPYC-Milan-v3': milan,
  'EPYC-Genoa': genoa,
  'EPYC-Genoa-v1': genoa,
  'EPYC-Genoa-v2': genoa,
  'EPYC-Turin': turin,
  'EPYC-Turin-v1': turin,
}

export function vcpuSignature(name: string): number {
  const found = vcpuTypes[name]
  if (found === undefined) throw new CloisterError('vcpu-type', `unknown vCPU type '${name}': one of ${Object.keys(vcpuTypes).join(', ')}`)
  return found
}

export interface CpuidEntry {
  function: number
  index: number
  flags: number
  eax: number
  ebx: number
  ecx: number
  edx: number
}

/**
 * CPUID of one vCPU: what KVM supports, with its APIC id and the number of CPUs filled in (QEMU's topology for `-smp N`:
 * N cores of one socket, one thread each), and with the signature of `type` when one is asked for.
 */
export function cpuidFor(
  supported: readonly CpuidEntry[],
  id: number,
  cpus: number,
  type: string | undefined,
): { entries: CpuidEntry[]; signature: number } {
  const bits = Math.ceil(Math.log2(cpus))
  let found = type === undefined ? 0 : vcpuSignature(type)
  const entries = supported.map((from) => {
    const e = { ...from }
    switch (e.function) {
      case 1:
        if (type === undefined) found = e.eax
        else e.eax = found
        e.ebx = ((e.ebx & 0xff00) | (id << 24) | (cpus << 16)) >>> 0
        if (cpus > 1) e.edx = (e.edx | 0x10000000) >>> 0
        break
      case 0xb:
        e.edx = id
        break
      case 0x80000008:
        e.ecx = cpus > 1 ? (bits << 12) | (cpus - 1) : 0
        break
      case 0x8000001e:
        e.eax = id
        e.ebx = id & 0xff
        e.ecx = 0
    }
    return e
  })
  for (const e of entries) {
    if (e.function !== 0xb) continue
    // Level 0: threads (one), level 1: cores of the package.
    e.eax = e.index === 1 ? bits : 0
    e.ebx = e.index === 0 ? 1 : e.index === 1 ? cpus : 0
    e.ecx = e.index | (e.index === 0 ? 0x100 : e.index === 1 ? 0x200 : 0)
  }
  return { entries, signature: found }
}
