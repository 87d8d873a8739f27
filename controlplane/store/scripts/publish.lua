-- Replaces a document if the expected version stands there, and tells the routers.
--
-- KEYS  1 document (hash: version, body)  2 events (stream)
-- ARGV  1 topic  2 body, JSON  3 version it replaces, "" for any  4 bytes a body may have
--       5 events kept  6 ttl of both, ms
-- Returns {version that now stands there, or 0 if another one was not replaced, keys repaired}.
--
-- Atomic, because comparing and replacing must not be parted by another publisher. What stands
-- there already is not published again: so a call that was done but timed out can be repeated.
-- Complexity: O(body).

local version, body = read_document(KEYS[1], tonumber(ARGV[4]))
local expected = ARGV[3] ~= '' and tonumber(ARGV[3]) or nil

if body == ARGV[2] and (not expected or version == expected or version == expected + 1) then
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
  return {version, repaired}
end
if expected and version ~= expected then
  return {0, repaired}
end

version = version + 1
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', version), 'body', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
append(KEYS[2], 'MAXLEN', '~', ARGV[5], '*',
  'published', ARGV[1], 'version', string.format('%.0f', version))
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return {version, repaired}
