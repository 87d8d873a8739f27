-- Releases a reservation and appends its decision record.
--
-- KEYS  1 decisions (stream)  2 index of decisions (hash: decision id to stream id)
--       and from 3 on, if there was a reservation, the keys of release.lua
-- ARGV  1 decision id  2 record, JSON  3 records kept  4 ttl of both, ms
--       and from 5 on the members of release.lua
-- Returns {1 if the record was appended, keys repaired}.
--
-- Atomic, because the index is what makes finishing twice append once, and it must hold exactly
-- the ids that are in the stream: so the oldest records are cut here, one for one, and their ids
-- with them, and not by an approximate MAXLEN that would not say which ids it took.
-- Complexity: O(log reservations) + O(records over the limit, at most 100 for each call).

for index = 3, #KEYS do
  strike(KEYS[index], ARGV[index + 2])
end

heal(KEYS[1], 'stream')
heal(KEYS[2], 'hash')
local known = redis.call('HGET', KEYS[2], ARGV[1])
if known then
  local found = redis.pcall('XRANGE', KEYS[1], known, known)
  if not found.err and #found == 1 and found[1][2][2] == ARGV[1] then
    return {0, repaired}
  end
  -- The index leads nowhere: this record is not there.
  repaired = repaired + 1
end

local entry = append(KEYS[1], '*', 'id', ARGV[1], 'record', ARGV[2])
redis.call('HSET', KEYS[2], ARGV[1], entry)

local length = redis.call('XLEN', KEYS[1])
if redis.call('HLEN', KEYS[2]) > length then
  -- The stream was lost and the index was not: its other ids lead nowhere.
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[2], ARGV[1], entry)
  repaired = repaired + 1
end

local excess = math.min(length - tonumber(ARGV[3]), 100)
if excess > 0 then
  for _, old in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', excess)) do
    if old[2][1] == 'id' then
      redis.call('HDEL', KEYS[2], old[2][2])
    end
  end
  redis.call('XTRIM', KEYS[1], 'MAXLEN', '=', length - excess)
end

redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return {1, repaired}
