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
  'EPYC-Rome': rome,
  'EPYC-Rome-v1': rome,
  'EPYC-Rome-v2': rome,
  'EPYC-Rome-v3': rome,
  'EPYC-Rome-v4': rome,
  'EPYC-Milan': milan,
  'EPYC-Milan-v1': milan,
  'EPYC-Milan-v2': milan,
  'EPYC-Genoa': genoa,
  'EPYC-Genoa-v1': genoa,
  'EPYC-Turin': turin,
}

export function vcpuSignature(name: string): number {
  const found = vcpuTypes[name]
  if (found === undefined) throw new CloisterError('vcpu-type', `unknown vCPU type '${name}': one of ${Object.keys(vcpuTypes).join(', ')}`)
  return found
}
