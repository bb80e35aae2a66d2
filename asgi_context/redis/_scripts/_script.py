"""What all scripts have."""

from hashlib import sha1
from typing import Final

HEAD: Final = """
local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function text(moment)
  if moment == math.huge then return 'inf' end
  return string.format('%.0f', moment)
end
local function moment(text)
  if text == 'inf' or text == 'none' then return math.huge end
  return tonumber(text)
end
-- What a writer is to be told where the space is not registered, or was erased since the writer has registered it:
-- until when to register it, and what erasing has left. Else nothing, and the index says that it is registered.
local function unregistered(index, now, ends, registered)
  local mark = redis.call('ZSCORE', index, '')
  if mark and moment(mark) >= ends then return nil end
  local erased = redis.call('ZSCORE', index, '\\255') or ''
  local until_, seen = string.match(registered, '^(.-) (.*)$')
  if until_ and seen == erased then
    redis.call('ZADD', index, until_, '')
    -- Until the last of what is in it is over: where erasing was broken off, that may be later than this.
    local last = moment(redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')[2])
    if last == math.huge then redis.call('PERSIST', index) else redis.call('PEXPIREAT', index, text(last)) end
    return nil
  end
  return {{'register', text(ends + math.max(ends - now, 3600000)) .. ' ' .. erased}}
end
-- Take some of those out that are over: what a call costs must not depend on how many there are.
local function purge(scored, now)
  local over = redis.call('ZRANGEBYSCORE', scored, '0', text(now), 'LIMIT', 0, 100)
  if #over > 0 then redis.call('ZREM', scored, unpack(over)) end
end
-- A version, with the mark of a state that lives for as long as is the default.
local function marked(version, old, ttl, default)
  if ttl == 'keep' and ((old and string.sub(old, -1) == 's') or (not old and default ~= 'none')) then
    return version .. 's'
  end
  return version
end
-- Set the time to live of a state, and when it is over in the index.
local function let_end(key, index, name, ends)
  if ends == math.huge then redis.call('PERSIST', key) else redis.call('PEXPIREAT', key, text(ends)) end
  redis.call('ZADD', index, text(ends), name)
end
-- What a write is to be refused for.
local function refused(index, now, made, states)
  if not made or redis.call('ZCARD', index) <= states then return nil end
  purge(index, now)
  if redis.call('ZCOUNT', index, '(' .. text(now), '+inf') > states then return {{'limit', 'user_states'}} end
  return nil
end
"""
"""Functions that scripts share, before their own text."""


class Script:
    """A script, and what names it on a server that has it.

    Args:
        text: the script.
    """

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
