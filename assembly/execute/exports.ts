/** Exports of the execution loop. */
export { decode } from '../decode/decoder'
export { invalidateLines, lookup } from '../decode/cache'
export { execute } from '../generated/execute'
