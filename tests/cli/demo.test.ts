/** `cloister demo` shows every VM type that works, and names those to come. */
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { cloister } from './cli.ts'

const test = suite('demo')

test('all sample guests end as they should', () => {
  const { status, stdout, stderr } = cloister(['demo'])
  assert.is(status, 0, stderr + stdout)
  for (const type of ['default', 'sev', 'sev-legacy', 'sev-es', 'sev-es-legacy'])
    assert.match(stdout, new RegExp(`^   ${type} .* ok$`, 'm'))
  assert.match(stdout, /^   snp +to come$/m)
  assert.match(stdout, /^   tdx +to come$/m)
  assert.match(stdout, /KVM_SEV_LAUNCH_UPDATE_VMSA/)
  assert.not.match(stdout, /NOT AS EXPECTED/)
})

test.run()
