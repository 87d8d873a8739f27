-- Claims an idempotency key for a request that begins, or prolongs the claim.
--
-- KEYS  1 claim (hash: digest; while a request runs also owner, and until in server ms)
-- ARGV  1 owner  2 digest of the request  3 ttl, ms  4 "1" to prolong only
-- Returns {0 granted, 1 in use, 2 used for another request, keys repaired}.
--
-- Atomic, because looking and taking must not be parted by another router's claim. The key itself
-- lives at least as long as the claim, and longer while it stands for an earlier request.
-- Complexity: O(1).

local claim = read_claim(KEYS[1])
local now = now_ms()
local ttl_ms = tonumber(ARGV[3])

if claim and claim.digest ~= ARGV[2] then
  return {2, repaired}
end
local is_ours = claim and claim.owner == ARGV[1]
local is_free = not (claim and claim.owner and claim.until_ms > now)
if not is_ours and (ARGV[4] == '1' or not is_free) then
  return {1, repaired}
end

redis.call('HSET', KEYS[1], 'digest', ARGV[2], 'owner', ARGV[1],
  'until', string.format('%.0f', now + ttl_ms))
keep(KEYS[1], ttl_ms)
return {0, repaired}
