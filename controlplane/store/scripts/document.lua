-- Reads a document, and lets it live on because somebody still reads it.
--
-- KEYS  1 document (hash: version, body)
-- ARGV  1 bytes a body may have  2 ttl, ms
-- Returns {body or false, version or 0, keys repaired}.
--
-- Atomic, so that version and body belong together and garbage is never sent.
-- Complexity: O(body).

local version, body = read_document(KEYS[1], tonumber(ARGV[1]))
if body then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return {body or false, version, repaired}
