-- The steps of one customer's holds and uses.

function steps.ticket()
    read({'c'})
    if not customer or customer.is_coming then return -1 end
    local number = next_ticket()
    write()
    return {number, now}
end

-- The claims of a step: each has a number of names that it pays for, and the price of each, at its end.
local function claims_from(first)
    local claims = {}
    while ARGV[first] do
        local claim = {
            name = ARGV[first], amount = tonumber(ARGV[first + 1]), pays_for = {}, news = {
                period = ARGV[first + 2], used = tonumber(ARGV[first + 3]), limit = tonumber(ARGV[first + 4]),
                ticket = tonumber(ARGV[first + 5]), asked_at = tonumber(ARGV[first + 6]),
            },
        }
        for i = first + 8, first + 6 + 2 * tonumber(ARGV[first + 7]), 2 do
            table.insert(claim.pays_for, {name = ARGV[i], rate = tonumber(ARGV[i + 1])})
        end
        table.insert(claims, claim)
        first = first + 8 + 2 * #claim.pays_for
    end
    return claims
end

-- What is held and on its way of the keys that a wallet pays for, in its currency.
local function spent(pays_for)
    local sum = 0
    for _, one in ipairs(pays_for) do sum = sum + cost(outstanding_of(at('k', one.name)), one.rate) end
    return sum
end

-- The reports of a claim's key, or of those that it pays for, as is_perhaps_free wants them.
local function sending_of_claim(claim)
    local found = {}
    for _, one in ipairs(claim.pays_for) do
        for _, report in ipairs(sending_of(at('k', one.name))) do table.insert(found, priced(report, one.rate)) end
    end
    for _, report in ipairs(sending_of(at('k', claim.name))) do table.insert(found, report) end
    return found
end

-- A caller's key is kept under a name of its own, which Redis forgets by itself; while it is held not before a hold that
-- expired can hardly be renewed any more.
local function mark_of(name)
    local packed = redis.call('GET', name)
    if not packed then return nil end
    local hold, ends, binding = cmsgpack.unpack(packed)
    return {hold = hold, ends = ends, binding = binding}
end

local function put_mark(name, hold, lasts, binding)
    local kept = hold == '' and lasts or math.max(lasts, EXPIRED_HOLDS_KEPT)
    redis.call('SET', name, cmsgpack.pack(hold, now + lasts, binding), 'PX', string.format('%.0f', kept / 1000))
end

-- Leaves a key free that the hold has; whether it had it.
local function free_key(name, hold)
    local mark = name and mark_of(name)
    return mark and mark.hold == hold and redis.call('DEL', name) == 1
end

-- Notes that a use with the key is counted; false if one was.
local function count_once(name, kept, binding)
    if is_counted(mark_of(name), now) then return false end
    put_mark(name, '', kept, binding)
    return true
end

-- token, hold, lasts, grace, binding, {name, amount, period, used, limit or nothing, ticket, asked at, how many keys it pays for,
-- name, rate...}...; KEYS[3] is the caller's key, if there is one
function steps.hold()
    local id, lasts, grace, binding, claims = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], claims_from(7)
    local fields = {'c'}
    for _, claim in ipairs(claims) do
        table.insert(fields, 'k' .. claim.name)
        for _, one in ipairs(claim.pays_for) do table.insert(fields, 'k' .. one.name) end
    end
    read(fields)
    local again = refusal()
    if again then return again end
    local state = KEYS[3] and key_state(mark_of(KEYS[3]), binding, now) or 'free'
    if state ~= 'free' then return state end
    reckon_holds()
    local parts, exceeded = {}, nil
    for i, claim in ipairs(claims) do
        local key, amount = at('k', claim.name), claim.amount
        local period = period_of(key)
        local row, limit = believed(key.row, claim.news, now, grace)
        note(key, row, period)
        bring_back_holds(key)
        local before = parts[key] or 0
        local total = counted(row, key.held + before, on_its_way(key)) + spent(claim.pays_for)
        if not exceeded and not is_free(total, amount, limit) then
            local perhaps = is_perhaps_free(row, total, amount, limit, sending_of_claim(claim))
            exceeded = {i - 1, total, math.max(limit, 0), perhaps and 1 or 0}
        end
        parts[key] = before + amount
    end
    for _, claim in ipairs(claims) do
        if #claim.pays_for > 0 then parts[at('k', claim.name)] = nil end
    end
    for key, amount in pairs(exceeded and {} or parts) do
        local part = {amount = amount, period = key.row.period, taken_at = now, ends = now + lasts, lasts = lasts}
        part.id = key.name .. '/' .. id
        loaded.h[part.id] = part
        weigh_hold(part, 1)
    end
    if KEYS[3] and not exceeded then put_mark(KEYS[3], id, lasts, binding) end
    write()
    return exceeded or {}
end

-- lasts, the hold of each caller's key in KEYS..., id...
function steps.renew()
    local fields, lasts, first = {'c'}, tonumber(ARGV[2]), #KEYS + 1
    for i = first, #ARGV do table.insert(fields, 'h' .. ARGV[i]) end
    read(fields)
    for i = 3, #KEYS do
        local mark = mark_of(KEYS[i])
        if mark and mark.hold == ARGV[i] then put_mark(KEYS[i], mark.hold, lasts, mark.binding) end
    end
    for i = first, #ARGV do
        local part = at('h', ARGV[i])
        if part then
            weigh_hold(part, -1)
            part.ends, part.lasts = now + lasts, lasts
            weigh_hold(part, 1)
        end
    end
    write()
end

-- Ends the parts of a hold: their periods by name, and whether one of them had expired or was gone.
local function end_hold(first, last)
    local periods, late = {}, false
    for i = first, last do
        local part = at('h', ARGV[i])
        late = late or not part or part.ends <= now
        if part then
            weigh_hold(part, -1)
            part.gone = true
            periods[key_of(part).name] = part.period
        end
    end
    return periods, late
end

local function newest_unsent(key)
    local newest = key.newest ~= '' and at('e', key.newest)
    if newest and newest.state == 'unsent' or key.newest == '' then return newest end
    write()
    local unsent = ids('u', 'v')
    key.newest = ''
    for i = #unsent, 1, -1 do
        if name_of(unsent[i]) == key.name then
            key.newest = unsent[i]
            return at('e', key.newest)
        end
    end
end

-- Writes a use, added to what is unsent where that loses nothing; the key's usage with it.
local function record(use)
    local key = at('k', use.name)
    if use.amount ~= 0 or use.is_set then
        local period = use.period or period_of(key)
        local new = {
            state = 'unsent', amount = use.amount, is_set = use.is_set, used_at = stamped(period, instant_text(now)),
            first_at = now, period = period, event = use.event, dimensions = use.dimensions, ends = 0, lasts = 0,
            reason = '', attempts = 0, ticket = 0, before = '',
        }
        local old = use.event == '' and newest_unsent(key)
        if old and may_add_up(old, new, period_of(key)) then
            weigh(old, -1)
            old.amount, old.used_at = old.amount + new.amount, later(old.used_at, new.used_at)
            weigh(old, 1)
        else
            customer.number = math.max(tonumber(ARGV[2]), customer.number + 1)
            new.id = digits(customer.number) .. (use.event == '' and '' or '~') .. '/' .. key.name
            loaded.e[new.id] = new
            weigh(new, 1)
            if use.event == '' then key.newest = new.id end
        end
    end
    return usage_of(key)
end

-- token, hold, seconds to remember it for, whether it is repeated, binding and how long the caller's key is kept, number
-- of parts held, id..., {name, amount, is_set, event, dimensions}...; KEYS[3] is there once it is made, KEYS[4] is the
-- caller's key, if there is one
function steps.commit()
    local last = 8 + tonumber(ARGV[8])
    local fields = {'c'}
    for i = 9, last do table.insert(fields, 'h' .. ARGV[i]) end
    for i = last + 1, #ARGV, 5 do table.insert(fields, 'k' .. ARGV[i]) end
    read(fields)
    local again = refusal()
    if again then return again end
    local periods, late, is_made = {}, false, not redis.call('SET', KEYS[3], '1', 'EX', ARGV[4], 'NX')
    if not is_made then
        periods, late = end_hold(9, last)
        local was_here = free_key(KEYS[4], ARGV[3]) or next(periods) ~= nil
        local is_open = KEYS[4] and ARGV[8] == '0' and not is_counted(mark_of(KEYS[4]), now)
        is_made = ARGV[5] == '1' and not was_here and not is_open
    end
    local answer = {late and not is_made and 1 or 0}
    if KEYS[4] and not is_made and not count_once(KEYS[4], tonumber(ARGV[7]), ARGV[6]) then last = #ARGV end
    for i = last + 1, #ARGV, 5 do
        local name = ARGV[i]
        table.insert(answer, is_made and usage_of(at('k', name)) or record({
            name = name, amount = tonumber(ARGV[i + 1]), is_set = ARGV[i + 2] == '1', event = ARGV[i + 3],
            dimensions = ARGV[i + 4], period = periods[name],
        }))
    end
    write()
    return answer
end

-- hold, id...; KEYS[3] is the caller's key, if there is one
function steps.release()
    local fields = {'c'}
    for i = 3, #ARGV do table.insert(fields, 'h' .. ARGV[i]) end
    read(fields)
    end_hold(3, #ARGV)
    free_key(KEYS[3], ARGV[2])
    write()
end
