-- How one customer's part of the ledger is kept: in a hash, the book, and a sorted set of texts, the index.
--
-- The book has the customer under 'c', keys under 'k' and their name, holds under 'h', name, '/' and id, and entries
-- under 'e' and their id, which begins with their number. A name is a resource and a feature with a slash between.
-- In the index, what is in one state begins with one letter, and all from 's' on counts against a limit:
--
--     h end name/hold    held            u id      unsent                w end id   uncertain, decided then
--     d id               dead            v id      unsent event          x id       uncertain, a person decides
--     s batch id         sending         t batch id   sending event
--
-- Numbers of entries and ends have 16 digits, so that each state is in order. A step changes what it has read, and
-- write() puts it all into both.

local BOOK, INDEX = KEYS[1], KEYS[2]

-- At how many values at once; a call has room for fewer than 8000.
local AT_ONCE = 2000

-- What was read of the book, by field; false for nothing.
local loaded = {}

local function number_of(id) return string.sub(id, 1, 16) end

local function name_of(id) return string.match(id, '^%d+~?/(.*)$') end

local function is_event(id) return string.sub(id, 17, 17) == '~' end

local function pack(kind, value)
    if kind == 'e' then
        return cmsgpack.pack(
            value.state, value.amount, value.is_set, value.used_at, value.first_at, value.period, value.event,
            value.dimensions, value.ends, value.lasts, value.batch, value.reason, value.attempts, value.ticket,
            value.before
        )
    elseif kind == 'k' then
        local row = value.row or {}
        return cmsgpack.pack(
            value.held, value.latest, value.live, value.more, value.total, value.newest, row.period, row.used,
            row.limit, row.seen, row.settled, row.settled_at, row.moved_at, row.added
        )
    elseif kind == 'h' then
        return cmsgpack.pack(value.amount, value.period, value.taken_at, value.ends, value.lasts)
    end
    return cmsgpack.pack(
        value.number, value.void, value.ticket, value.horizon, value.soonest, value.is_coming
    )
end

local function unpacked(kind, packed)
    local value, row = {packed = packed}, {}
    if kind == 'e' then
        value.state, value.amount, value.is_set, value.used_at, value.first_at, value.period, value.event,
            value.dimensions, value.ends, value.lasts, value.batch, value.reason, value.attempts, value.ticket,
            value.before = cmsgpack.unpack(packed)
    elseif kind == 'k' then
        value.held, value.latest, value.live, value.more, value.total, value.newest, row.period, row.used,
            row.limit, row.seen, row.settled, row.settled_at, row.moved_at, row.added = cmsgpack.unpack(packed)
        value.row = row.used and row
    elseif kind == 'h' then
        value.amount, value.period, value.taken_at, value.ends, value.lasts = cmsgpack.unpack(packed)
    else
        value.number, value.void, value.ticket, value.horizon, value.soonest,
            value.is_coming = cmsgpack.unpack(packed)
    end
    return value
end

-- Where an entry or a hold stands in the index.
local function place(kind, value, id)
    if kind == 'h' then return 'h' .. digits(value.ends) .. id end
    if value.state == 'sending' then return (is_event(id) and 't' or 's') .. value.batch .. ' ' .. id end
    if value.state == 'unsent' then return (is_event(id) and 'v' or 'u') .. id end
    if value.state == 'dead' then return 'd' .. id end
    return value.ends and 'w' .. digits(value.ends) .. id or 'x' .. id
end

-- Reads the fields that were not read yet, in one go.
local function fetch(fields)
    local missing = {}
    for _, field in ipairs(fields) do
        if loaded[field] == nil then table.insert(missing, field) end
    end
    for first = 1, #missing, AT_ONCE do
        local last = math.min(first + AT_ONCE - 1, #missing)
        for i, packed in ipairs(redis.call('HMGET', BOOK, unpack(missing, first, last))) do
            local field = missing[first + i - 1]
            local kind = string.sub(field, 1, 1)
            local value = packed and unpacked(kind, packed)
            if value and (kind == 'e' or kind == 'h') then
                value.id = string.sub(field, 2)
                value.place = place(kind, value, value.id)
            elseif kind == 'k' then
                value = value or {held = 0, latest = 0, live = 0, more = 0, total = 0, newest = ''}
                value.name = string.sub(field, 2)
            end
            loaded[field] = value
        end
    end
end

local function at(kind, id)
    local field = kind .. id
    if loaded[field] == nil then fetch({field}) end
    return loaded[field]
end

local function call_in_parts(command, key, values)
    for first = 1, #values, AT_ONCE do
        redis.call(command, key, unpack(values, first, math.min(first + AT_ONCE - 1, #values)))
    end
end

-- Writes what has changed of all that was read. A value that is `gone` is deleted.
local function write()
    local puts, drops, enters, leaves = {}, {}, {}, {}
    for field, value in pairs(loaded) do
        local kind = string.sub(field, 1, 1)
        if value and value.gone then
            table.insert(drops, field)
            table.insert(leaves, value.place)
            loaded[field] = false
        elseif value then
            local packed = pack(kind, value)
            if packed ~= value.packed then
                table.insert(puts, field)
                table.insert(puts, packed)
                value.packed = packed
            end
            if kind == 'e' or kind == 'h' then
                local place_now = place(kind, value, value.id)
                if place_now ~= value.place then
                    table.insert(leaves, value.place)
                    table.insert(enters, 0)
                    table.insert(enters, place_now)
                    value.place = place_now
                end
            end
        end
    end
    call_in_parts('HDEL', BOOK, drops)
    call_in_parts('HSET', BOOK, puts)
    call_in_parts('ZREM', INDEX, leaves)
    call_in_parts('ZADD', INDEX, enters)
end

-- The ids of what stands in the index from `first` up to, but not with `last`; those with an end have it before them.
local function ids(first, last, limit)
    local found = redis.call('ZRANGEBYLEX', INDEX, '[' .. first, '(' .. last, 'LIMIT', 0, limit or -1)
    for i, member in ipairs(found) do
        local letter = string.sub(member, 1, 1)
        if letter == 's' or letter == 't' then
            found[i] = string.match(member, '^%S+ (.*)$')
        elseif letter == 'h' or letter == 'w' then
            found[i] = string.sub(member, 18)
        else
            found[i] = string.sub(member, 2)
        end
    end
    return found
end

-- Entries or holds by their ids.
local function all_at(kind, found)
    local fields, values = {}, {}
    for i, id in ipairs(found) do fields[i] = kind .. id end
    fetch(fields)
    for _, field in ipairs(fields) do table.insert(values, loaded[field] or nil) end
    return values
end

-- What counts of a key -----------------------------------------------------------------------------------------------

local function period_of(key) return key.row and key.row.period or '/' end

-- The row of a key is this one now; what is on its way is reckoned anew for another period.
local function note(key, row)
    if row.period ~= period_of(key) and key.live > 0 then key.more = nil end
    key.row = row
end

local function entries_of(key)
    local found = {}
    for _, id in ipairs(key.live > 0 and ids('s', 'y') or {}) do
        if name_of(id) == key.name then table.insert(found, id) end
    end
    return all_at('e', found)
end

-- The sum of what is on its way of a key, for its row's period.
local function on_its_way(key)
    if not key.more then
        write()
        local sum = {more = 0, total = 0}
        for _, entry in ipairs(entries_of(key)) do sum = summed(sum, entry, period_of(key)) end
        key.more, key.total = sum.more, sum.total
    end
    return key
end

-- Adds an entry to that sum, or with -1 takes it away. It begins anew when nothing is left.
local function weigh(entry, sign)
    if entry.state == 'dead' then return end
    local key = at('k', name_of(entry.id))
    key.live = key.live + sign
    if key.live == 0 then
        key.more, key.total = 0, 0
    elseif key.more and counts(entry, period_of(key)) then
        if not entry.is_set then
            key.more = key.more + sign * math.max(entry.amount, 0)
        elseif sign > 0 then
            key.total = math.max(key.total, entry.amount)
        else
            key.more = nil
        end
    end
end

local function usage_of(key)
    return counted(key.row or {used = 0}, 0, on_its_way(key))
end

-- Holds --------------------------------------------------------------------------------------------------------------

local function key_of(hold) return at('k', string.match(hold.id, '^[^/]*/[^/]*')) end

-- A key's `held` is the sum of its holds that end after the customer's `horizon`; none of those ends before `soonest`.
local function weigh_hold(hold, sign)
    local customer, key = at('c', ''), key_of(hold)
    if sign > 0 then key.latest = math.max(key.latest, hold.ends - hold.lasts) end
    if hold.ends > customer.horizon then
        key.held = key.held + sign * hold.amount
        if sign > 0 then customer.soonest = math.min(customer.soonest or hold.ends, hold.ends) end
    end
end

local function forget_old_holds()
    for _, hold in ipairs(all_at('h', ids('h', 'h' .. digits(math.max(0, now - EXPIRED_HOLDS_KEPT)), AT_ONCE))) do
        weigh_hold(hold, -1)
        hold.gone = true
    end
end

-- Moves the horizon to the present.
local function reckon_holds()
    local customer = at('c', '')
    if customer.horizon <= now and now < (customer.soonest or now + 1) then return end
    local first, last, sign = customer.horizon, now, -1
    if now < customer.horizon then first, last, sign = now, customer.horizon, 1 end
    for _, hold in ipairs(all_at('h', ids('h' .. digits(first + 1), 'h' .. digits(last + 1)))) do
        local key = key_of(hold)
        key.held = key.held + sign * hold.amount
    end
    customer.horizon = now
    local next_one = redis.call('ZRANGEBYLEX', INDEX, '[h' .. digits(now + 1), '(i', 'LIMIT', 0, 1)[1]
    customer.soonest = next_one and tonumber(string.sub(next_one, 2, 17))
    forget_old_holds()
end

-- Lets the holds of a key that were taken before the clock was set back end in their own time.
local function bring_back_holds(key)
    if key.latest <= now then return end
    for _, hold in ipairs(all_at('h', ids('h', 'i'))) do
        if key_of(hold) == key then
            weigh_hold(hold, -1)
            hold.ends = until_(hold.ends, hold.lasts, now)
            weigh_hold(hold, 1)
        end
    end
    key.latest = now
end
