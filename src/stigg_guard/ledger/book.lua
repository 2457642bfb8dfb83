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

-- What was read of the book: the customer, and by kind and id keys, holds and entries; false for what is not there.
local customer, loaded = nil, {k = {}, h = {}, e = {}}

local function number_of(id) return string.sub(id, 1, 16) end

local function name_of(id) return string.match(id, '^%d+~?/(.*)$') end

local function is_event(id) return string.sub(id, 17, 17) == '~' end

-- A value of the book as text, and back.
local function encoded(kind, value)
    if kind == 'k' then
        local row = value.row or value
        return cmsgpack.pack(
            value.held, value.latest, value.live, value.more, value.total, value.newest, row.period, row.used,
            row.limit, row.seen, row.settled, row.settled_at, row.moved_at, row.added
        )
    elseif kind == 'h' then
        return cmsgpack.pack(value.amount, value.period, value.taken_at, value.ends, value.lasts)
    elseif kind == 'e' then
        return cmsgpack.pack(
            value.state, value.amount, value.is_set, value.used_at, value.first_at, value.period, value.event,
            value.dimensions, value.ends, value.lasts, value.batch, value.reason, value.attempts, value.ticket,
            value.before
        )
    end
    return cmsgpack.pack(value.number, value.void, value.ticket, value.horizon, value.soonest, value.is_coming)
end

local function decoded(kind, packed, id)
    if kind == 'k' then
        local held, latest, live, more, total, newest, period, used, limit, seen, settled, settled_at, moved_at, added =
            cmsgpack.unpack(packed)
        return {
            packed = packed, name = id, held = held, latest = latest, live = live, more = more, total = total,
            newest = newest,
            row = used and {
                period = period, used = used, limit = limit, seen = seen, settled = settled, settled_at = settled_at,
                moved_at = moved_at, added = added,
            },
        }
    elseif kind == 'h' then
        local amount, period, taken_at, ends, lasts = cmsgpack.unpack(packed)
        return {
            packed = packed, id = id, amount = amount, period = period, taken_at = taken_at, ends = ends, lasts = lasts,
        }
    elseif kind == 'e' then
        local state, amount, is_set, used_at, first_at, period, event, dimensions, ends, lasts, batch, reason, attempts,
            ticket, before = cmsgpack.unpack(packed)
        return {
            packed = packed, id = id, state = state, amount = amount, is_set = is_set, used_at = used_at,
            first_at = first_at, period = period, event = event, dimensions = dimensions, ends = ends, lasts = lasts,
            batch = batch, reason = reason, attempts = attempts, ticket = ticket, before = before,
        }
    end
    local number, void, ticket, horizon, soonest, is_coming = cmsgpack.unpack(packed)
    return {
        packed = packed, number = number, void = void, ticket = ticket, horizon = horizon, soonest = soonest,
        is_coming = is_coming,
    }
end

-- Where a hold or an entry stands in the index.
local function place(kind, value)
    local id, state = value.id, value.state
    if kind == 'h' then return 'h' .. digits(value.ends) .. id end
    if state == 'sending' then return (is_event(id) and 't' or 's') .. value.batch .. ' ' .. id end
    if state == 'unsent' then return (is_event(id) and 'v' or 'u') .. id end
    if state == 'dead' then return 'd' .. id end
    return value.ends and 'w' .. digits(value.ends) .. id or 'x' .. id
end

local function load(kind, id, packed)
    local value = packed and decoded(kind, packed, id)
    if kind == 'c' then
        customer = value
    elseif kind == 'k' then
        loaded.k[id] = value or {name = id, held = 0, latest = 0, live = 0, more = 0, total = 0, newest = ''}
    else
        if value then value.place = place(kind, value) end
        loaded[kind][id] = value
    end
end

-- Reads fields that were not read yet, in one go.
local function read(fields)
    for first = 1, #fields, AT_ONCE do
        local found = redis.call('HMGET', BOOK, unpack(fields, first, math.min(first + AT_ONCE - 1, #fields)))
        for i, packed in ipairs(found) do
            local field = fields[first + i - 1]
            load(string.sub(field, 1, 1), string.sub(field, 2), packed)
        end
    end
end

local function at(kind, id)
    if loaded[kind][id] == nil then read({kind .. id}) end
    return loaded[kind][id]
end

local function call_in_parts(command, key, values)
    for first = 1, #values, AT_ONCE do
        redis.call(command, key, unpack(values, first, math.min(first + AT_ONCE - 1, #values)))
    end
end

-- Writes what has changed of all that was read. A value that is `gone` is deleted.
local function write()
    local puts, drops, enters, leaves = {}, {}, {}, {}
    local packed = customer and encoded('c', customer)
    if packed and packed ~= customer.packed then
        puts[1], puts[2] = 'c', packed
        customer.packed = packed
    end
    for kind, values in pairs(loaded) do
        for id, value in pairs(values) do
            if value and value.gone then
                drops[#drops + 1], leaves[#leaves + 1] = kind .. id, value.place
                values[id] = false
            elseif value then
                packed = encoded(kind, value)
                if packed ~= value.packed then
                    puts[#puts + 1], puts[#puts + 2] = kind .. id, packed
                    value.packed = packed
                    local present_place = kind ~= 'k' and place(kind, value)
                    if present_place and present_place ~= value.place then
                        leaves[#leaves + 1] = value.place
                        enters[#enters + 1], enters[#enters + 2] = 0, present_place
                        value.place = present_place
                    end
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

-- Holds or entries by their ids.
local function all_at(kind, found)
    local missing, values = {}, {}
    for _, id in ipairs(found) do
        if loaded[kind][id] == nil then table.insert(missing, kind .. id) end
    end
    read(missing)
    for _, id in ipairs(found) do table.insert(values, loaded[kind][id] or nil) end
    return values
end

-- What counts of a key -----------------------------------------------------------------------------------------------

local function period_of(key) return key.row and key.row.period or '/' end

-- The row of a key is this one now; what is on its way is reckoned anew if it was for another period.
local function note(key, row, period)
    if row.period ~= period and key.live > 0 then key.more = nil end
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

-- The reports of a key that are under way for the first time: an acknowledgement is likely to come soon.
local function sending_of(key)
    local found = {}
    for _, entry in ipairs(entries_of(key)) do
        if entry.state == 'sending' and entry.attempts == 1 then table.insert(found, entry) end
    end
    return found
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
    local key = key_of(hold)
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

-- What is held and on its way of a key, whatever its period.
local function outstanding_of(key)
    bring_back_holds(key)
    write()
    local sum = {more = 0, total = 0}
    for _, entry in ipairs(entries_of(key)) do sum = summed(sum, entry, '/') end
    return outstanding(key.held, sum)
end
